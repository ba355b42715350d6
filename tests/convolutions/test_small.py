"""The dense way against `torch.linalg.pinv` of the matrix that torch's own layers make."""

from __future__ import annotations

import pytest
import torch

from hesse.convolutions import small
from hesse.convolutions.operator import Convolution

from .oracle import assert_is_pinv, assert_spectrum_and_null_space, by_layer, by_torch, convolution, images, kernel, matrix

COMPLEX = torch.complex128
CASES = {
    "zeros": convolution(kernel(4, 3, 3, 2), (6, 5), padding=1),
    "valid": convolution(kernel(2, 3, 3, 2), (6, 5)),
    "1d tall stride": convolution(kernel(7, 2, 3), (11,), stride=2, padding=1),
    "3d": convolution(kernel(2, 2, 2, 1, 3), (4, 3, 5), padding=(0, 0, 1), dilation=(2, 1, 1)),
    "reflect": convolution(kernel(2, 2, 3, 3), (6, 5), padding=(2, 1), padding_mode="reflect"),
    "replicate": convolution(kernel(2, 4, 3, 3), (4, 5), padding=(2, 3), padding_mode="replicate", stride=(1, 2)),
    "circular": convolution(kernel(2, 2, 3, 4), (6, 5), padding=(1, 2), padding_mode="circular"),
    "pairs": convolution(kernel(3, 2, 3, 2), (4, 5), padding=((0, 2), (1, 0))),
    "groups": convolution(kernel(6, 2, 3, 3), (5, 4), groups=3, padding=1),
    "complex groups": convolution(kernel(4, 2, 3, 3, dtype=COMPLEX), (5, 4), groups=2, padding=1, stride=2),
    "box, no rank": convolution(torch.ones(1, 1, 3, 3, dtype=torch.float64), (5, 8), padding=1),
    "zero channel": convolution(torch.cat([kernel(3, 1, 3), torch.zeros(3, 1, 3).double()], 1), (7,), padding=1),
    "repeated filters": convolution(kernel(2, 3, 3).repeat(2, 1, 1), (8,), padding=1),
    "groups of unlike size": convolution(kernel(4, 2, 3) * torch.tensor([1e9, 1e9, 1, 1]).reshape(4, 1, 1), (6,), groups=2),
    "tiny": convolution(1e-150 * kernel(2, 2, 3), (6,)),
    "huge": convolution(1e150 * kernel(2, 2, 3), (6,)),
    "dead cells": convolution(kernel(2, 2, 2), (9,), stride=4, padding=3),
}


@pytest.mark.parametrize("name", CASES)
def test_pseudo_inverse(name: str) -> None:
    A = CASES[name]
    inverse = small.make(A)
    assert inverse is not None and inverse.method == "dense"
    assert_is_pinv(inverse, A)


@pytest.mark.parametrize("name", CASES)
def test_spectrum_and_null_space(name: str) -> None:
    assert_spectrum_and_null_space(small.make(CASES[name]), CASES[name])


def test_cut_off_is_global_over_groups() -> None:
    A = CASES["groups of unlike size"]
    for rtol, truncated in ((1e-6, 8), (1e-12, 0)):
        inverse = small.make(A, rtol=rtol)
        assert inverse is not None and inverse.truncated == truncated
        assert_is_pinv(inverse, A, rtol=rtol)
        values = torch.linalg.svdvals(matrix(A))
        expected = float(values[7] / values[8]) if truncated else float("inf")
        assert inverse.gap == pytest.approx(expected, rel=1e-6)


def test_cut_off_without_a_gap_is_reported() -> None:
    A = convolution(kernel(1, 1, 3, 3), (9, 9), padding=1)
    values = torch.linalg.svdvals(matrix(A))
    place = 60
    inverse = small.make(A, rtol=float((values[place] * values[place + 1]).sqrt() / values[0]))
    assert inverse is not None and inverse.truncated == len(values) - place - 1
    assert inverse.gap == pytest.approx(float(values[place] / values[place + 1]), rel=1e-10)


@pytest.mark.parametrize(("out", "beside", "is_noise"), [(1, 1.4, False), (4, 2.0, True)])
def test_what_counts_as_zero_for_the_gap_is_told_by_the_longer_side_of_a_group(out: int, beside: float, is_noise: bool) -> None:
    """Two groups of 10 columns and ``10 out`` rows, with singular values 1 and t."""
    t = 16 * (10 * beside) ** 0.5 * torch.finfo(torch.float64).eps
    weight = torch.tensor([1.0, t], dtype=torch.float64).repeat_interleave(out) / out**0.5
    inverse = small.make(convolution(weight.reshape(-1, 1, 1), (10,), groups=2), rtol=1e-12)
    assert inverse is not None and inverse.truncated == 10
    assert inverse.gap == (float("inf") if is_noise else pytest.approx(1 / t, rel=1e-9))


def test_oracle_is_the_layer() -> None:
    A = CASES["reflect"]
    x = images(A, 2, out=False)
    torch.testing.assert_close(by_torch(A, x), by_layer(A, x))


def test_single_precision_is_decomposed_in_double() -> None:
    A = convolution(kernel(3, 2, 3, 3, dtype=torch.float32), (6, 5), padding=1)
    inverse = small.make(A)
    assert inverse is not None
    y = images(A, 2)
    double = Convolution(A.weight.double(), A.geometry)
    expected = y.double().flatten(1) @ torch.linalg.pinv(matrix(double)).mT
    found = inverse.apply(y).value
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.flatten(1).double(), expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_large_ones_are_left_to_others() -> None:
    assert small.make(convolution(kernel(1, 1, 3, 3), (40, 40), padding=1)) is None
    assert small.make(CASES["zeros"], memory=10_000) is None


def test_matrix_is_differentiable_by_the_weight() -> None:
    A = CASES["complex groups"]
    weight = A.weight.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda w: small.group_matrices(A.geometry, w), (weight,))
