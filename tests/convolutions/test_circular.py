"""Convolutions on a torus, against `torch.linalg.pinv` of the matrix that torch's own layers make."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hesse.convolutions import circular
from hesse.convolutions.operator import Convolution
from hesse.convolutions.symbol import from_frequencies, to_frequencies

from .oracle import assert_is_pinv, assert_spectrum_and_null_space, convolution, images, kernel, matrix, penrose, pinv_matrix

COMPLEX = torch.complex128
BOX = torch.ones(1, 1, 3, 3, dtype=torch.float64)
DIFFERENCE = torch.tensor([1.0, -1.0], dtype=torch.float64)


def make(weight: Tensor, size: tuple[int, ...], padding: object, **options: object) -> Convolution:
    return convolution(weight, size, padding=padding, padding_mode="circular", **options)


CASES = {
    "square": make(kernel(3, 3, 3, 3), (5, 6), 1),
    "tall": make(kernel(5, 2, 3, 3), (6, 5), 1),
    "wide": make(kernel(2, 5, 3, 3), (6, 5), 1),
    "1d even kernel": make(kernel(2, 2, 4), (9,), ((1, 2),)),
    "lopsided offset": make(kernel(2, 2, 3, 3), (5, 4), ((2, 0), (0, 2))),
    "kernel as large as the torus": make(kernel(2, 2, 5), (5,), 2),
    "kernel larger than the torus": make(kernel(2, 2, 3), (3,), 2, dilation=2),
    "stride": make(kernel(3, 2, 3, 3), (6, 8), ((1, 0), (0, 1)), stride=2),
    "square stride": make(kernel(8, 2, 2, 3), (6, 4), ((0, 0), (1, 0)), stride=2),
    "stride on one axis": make(kernel(3, 2, 3, 3), (6, 5), ((1, 1), (1, 1)), stride=(3, 1)),
    "dilation": make(kernel(2, 2, 3, 2), (7, 6), ((2, 2), (3, 0)), dilation=(2, 3)),
    "groups": make(kernel(6, 2, 3), (8,), 1, groups=3),
    "groups with stride": make(kernel(6, 1, 3, 2), (6, 4), ((1, 0), (0, 0)), stride=2, groups=3),
    "3d": make(kernel(2, 2, 2, 3, 1), (3, 4, 2), ((1, 0), (1, 1), (0, 0))),
    "complex": make(kernel(3, 2, 3, 3, dtype=COMPLEX), (4, 5), 1),
    "complex stride groups": make(kernel(4, 2, 3, dtype=COMPLEX), (8,), ((1, 0),), stride=2, groups=2),
    "complex square": make(kernel(4, 2, 3, dtype=COMPLEX), (6,), ((1, 0),), stride=2),
    "bare 1x1": convolution(kernel(3, 2, 1, 1), (3, 4)),
    "box, singular": make(BOX, (6, 9), 1),
    "difference, sums to zero": make(DIFFERENCE.reshape(1, 1, 2), (8,), ((0, 1),)),
    "zero channel": make(torch.cat([kernel(3, 1, 3), torch.zeros(3, 1, 3).double()], 1), (7,), 1),
    "repeated filters": make(kernel(2, 3, 3).repeat(2, 1, 1), (8,), 1),
    "complex, singular": make(DIFFERENCE.to(COMPLEX).reshape(1, 1, 2), (6,), ((1, 0),)),
    "no kernel": make(torch.zeros(2, 2, 3).double(), (6,), 1),
}
SINGULAR = ["box, singular", "difference, sums to zero", "zero channel", "repeated filters", "complex, singular"]


@pytest.mark.parametrize("name", CASES)
def test_pseudo_inverse(name: str) -> None:
    A = CASES[name]
    inverse = circular.make(A)
    assert inverse is not None and inverse.method == "circular"
    assert_is_pinv(inverse, A)


@pytest.mark.parametrize("name", CASES)
def test_spectrum_and_null_space(name: str) -> None:
    assert_spectrum_and_null_space(circular.make(CASES[name]), CASES[name])


@pytest.mark.parametrize("name", SINGULAR)
def test_penrose_equations_where_rank_lacks(name: str) -> None:
    A = CASES[name]
    inverse = circular.make(A)
    assert inverse is not None and inverse.truncated > 0 and inverse.gap == float("inf")
    assert penrose(matrix(A), pinv_matrix(inverse, A)) < 1e-13


@pytest.mark.parametrize("name", ["square", "complex", "stride", "groups"])
def test_cut_off_by_a_given_tolerance(name: str) -> None:
    A = CASES[name]
    values = torch.linalg.svdvals(matrix(A))
    place = next(i for i in range(len(values) // 2, len(values) - 1) if values[i] > 1.01 * values[i + 1])
    rtol = float((values[place] * values[place + 1]).sqrt() / values[0])
    inverse = circular.make(A, rtol=rtol)
    assert inverse is not None and inverse.truncated == len(values) - place - 1
    assert inverse.gap == pytest.approx(float(values[place] / values[place + 1]), rel=1e-10)
    assert_is_pinv(inverse, A, rtol=rtol)


def test_tolerance_per_frequency_is_wrong_by_fifteen_digits() -> None:
    """The usual way: a pseudo-inverse for each frequency, each with a tolerance of its own, inverts rounding errors."""
    A = make(BOX, (6, 9), 1)
    M = matrix(A)
    y = images(A, 1)
    expected = (torch.linalg.pinv(M) @ y.flatten()).reshape(1, 1, 6, 9)
    blocks = circular.blocks(A.geometry, A.weight)
    spectrum = to_frequencies(y, 2)
    each = torch.linalg.pinv(blocks).reshape(spectrum.shape)
    wrong = from_frequencies(each * spectrum, (6, 9), y.dtype)
    assert float((wrong - expected).norm() / expected.norm()) > 1e13
    inverse = circular.make(A)
    assert inverse is not None
    torch.testing.assert_close(inverse.apply(y).value, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "name", ["square", "square stride", "lopsided offset", "complex square", "1d even kernel", "no kernel"]
)
def test_log_determinant(name: str) -> None:
    A = CASES[name]
    sign, value = circular.log_determinant(A)
    expected = torch.linalg.slogdet(matrix(A))
    torch.testing.assert_close(sign, expected.sign, rtol=0, atol=1e-12)
    torch.testing.assert_close(value, expected.logabsdet, rtol=1e-13, atol=0)


def test_signs_of_determinants() -> None:
    """Over many kernels, sizes and strides, odd channels included: both signs occur."""
    seen = set()
    for seed in range(12):
        for size, stride, offset in (((6,), 2, 0), ((9,), 3, 1), ((7,), 1, 1), ((4, 6), 2, 1), ((3, 5), 1, 1)):
            count = stride ** len(size)
            weight = kernel(count, 1, *(3,) * len(size), seed=seed)
            pairs = tuple((offset, max(3 - stride - offset, 0)) for _ in size)
            A = make(weight, size, pairs, stride=stride)
            assert A.geometry.is_circular
            sign, value = circular.log_determinant(A)
            expected = torch.linalg.slogdet(matrix(A))
            assert float(sign) == float(expected.sign)
            assert float(value) == pytest.approx(float(expected.logabsdet), rel=1e-11, abs=1e-11)
            seen.add((stride, float(sign)))
    assert len(seen) == 6


@pytest.mark.parametrize("name", ["square", "square stride", "complex square"])
def test_gradient_of_the_log_determinant(name: str) -> None:
    A = CASES[name]
    weight = A.weight.clone().requires_grad_()
    (found,) = torch.autograd.grad(circular.log_determinant(Convolution(weight, A.geometry))[1], weight)
    (expected,) = torch.autograd.grad(torch.linalg.slogdet(matrix(Convolution(weight, A.geometry)))[1], weight)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_single_precision() -> None:
    A = make(kernel(3, 3, 3, 3, dtype=torch.float32), (6, 5), 1)
    inverse = circular.make(A)
    assert inverse is not None
    y = images(A, 2)
    found = inverse.apply(y).value
    expected = y.double().flatten(1) @ torch.linalg.pinv(matrix(Convolution(A.weight.double(), A.geometry))).mT
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.flatten(1).double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_sum_of_an_image_is_found_in_single_precision_on_large_tori() -> None:
    """By ``max(m, n) eps`` of single precision half of the spectrum would be cut off here."""
    A = make(kernel(8, 8, 3, 3, dtype=torch.float32), (64, 64), 1)
    inverse = circular.make(A)
    assert inverse is not None and inverse.truncated == 0
    x = images(A, 1, out=False)
    torch.testing.assert_close(inverse.apply(A @ x).value, x, rtol=0, atol=1e-2)


@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "padding": 1, "padding_mode": "circular"}])
def test_others_are_left_alone(options: dict[str, object]) -> None:
    assert circular.make(convolution(kernel(2, 2, 3), (7,), **options)) is None


def test_memory() -> None:
    assert circular.make(CASES["square"], memory=1000) is None
