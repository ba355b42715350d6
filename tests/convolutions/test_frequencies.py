"""Solutions judged by frequencies: beside the matrix that torch's own layers make, and with every part broken on purpose."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import hesse
from hesse.convolutions import circular, frequencies
from hesse.convolutions.certificate import certified
from hesse.convolutions.circular import CircularInverse
from hesse.convolutions.operator import Convolution
from tests.convolutions.oracle import convolution, images, kernel, matrix
from tests.convolutions.test_circular import CASES

TOLERANCE = 200 * torch.finfo(torch.float64).eps
REGULAR = ("square", "tall", "wide", "square stride", "groups with stride", "dilation", "3d", "complex stride groups")
LACKING = ("box, singular", "repeated filters", "complex, singular", "zero channel")


def made(A: Convolution) -> CircularInverse:
    inverse = circular.make(A)
    assert inverse is not None
    return inverse


def backward_errors(A: Convolution, Y: Tensor, X: Tensor, adjoint: bool) -> Tensor:
    """``[k]``: the part of the residual in the range of the matrix, beside ``|M| |x| + |y|``."""
    M = matrix(A).mH if adjoint else matrix(A)
    U, values, _ = torch.linalg.svd(M, full_matrices=False)
    U = U[:, values > 1e-12 * values[0]]
    y, x = Y.flatten(1), X.flatten(1)
    r = y - x @ M.mT
    return (r @ U.conj()).norm(dim=1) / (values[0] * x.norm(dim=1) + y.norm(dim=1))


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("name", [name for name in CASES if name != "no kernel"])
def test_what_is_right_is_measured_to_be(name: str, adjoint: bool) -> None:
    A = CASES[name]
    inverse = made(A)
    Y = images(A, 3, out=not adjoint)
    found = inverse.measured(Y, adjoint=adjoint)
    assert torch.equal(found.value, inverse.apply(Y, adjoint=adjoint).value)
    assert found.backward_error <= TOLERANCE
    assert float(backward_errors(A, Y, found.value, adjoint).max()) <= found.backward_error + 1e-15


@pytest.mark.sampled(25)
@pytest.mark.parametrize("size", [1e-11, 1e-5, 0.3])
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("name", [*REGULAR, *LACKING])
def test_one_wrong_block_is_refused(name: str, adjoint: bool, size: float) -> None:
    """Of one frequency and one group, the one that counts most."""
    A = CASES[name]
    inverse = made(A)
    Y = images(A, 3, out=not adjoint)
    place = int(torch.linalg.matrix_norm(inverse.blocks).argmax())
    wrong = torch.randn(inverse.blocks.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    inverse.blocks[place] += size * torch.linalg.matrix_norm(inverse.blocks[place]) * wrong
    found = inverse.measured(Y, adjoint=adjoint)
    assert found.backward_error > TOLERANCE
    if name not in LACKING:
        assert float(backward_errors(A, Y, found.value, adjoint).max()) <= 2 * found.backward_error
    assert "backward error" in (trouble := certified(inverse, Y, adjoint=adjoint).trouble) or "outside" in trouble


@pytest.mark.parametrize("name", ["wide", "zero channel", "box, singular", "complex, singular"])
def test_a_part_in_the_null_space_is_refused(name: str) -> None:
    """Added to the blocks of a convolution whose rank lacks; those of full rank have none by the way they are made."""
    A = CASES[name]
    inverse = made(A)
    inverse.truncated = max(inverse.truncated, 1)
    C = frequencies.blocks(A.geometry, A.weight)
    place = next(i for i in range(len(C)) if C.shape[2] > int(torch.linalg.matrix_rank(C[i], atol=1e-9)))
    null = torch.linalg.svd(C[place]).Vh[-1].conj()
    inverse.blocks[place] += 1e-6 * torch.ones(C.shape[1], 1, dtype=C.dtype) * null
    Y = images(A, 2)
    assert inverse.measured(Y).backward_error > TOLERANCE
    assert "outside of the range" in certified(inverse, Y).trouble


def shifted(make: Callable[..., Tensor], by: int) -> Callable[..., Tensor]:
    return lambda *args, **options: make(*args, **options).roll(by, -1)


@pytest.mark.parametrize("part", ["rows", "images", "blocks", "phases", "cells"])
@pytest.mark.parametrize("name", ["square", "stride", "wide", "complex stride groups"])
def test_what_is_wrong_from_the_start_meets_the_operator(monkeypatch: pytest.MonkeyPatch, name: str, part: str) -> None:
    """A symbol or a transform that is not that of the operator fits to itself, and not to the operator."""
    A = CASES[name]
    if part in ("phases", "cells") and set(A.geometry.stride) == {1}:
        return
    broken = shifted(getattr(frequencies, part), 1)
    monkeypatch.setattr(frequencies, part, broken)
    if part != "phases" and part != "cells":
        monkeypatch.setattr(circular, part, broken)
    inverse, adjoint = made(A), part == "phases"
    Y = images(A, 2, out=not adjoint)
    assert inverse._witness.agreement > 0.01
    assert inverse.measured(Y, adjoint=adjoint).backward_error > 0.01
    assert certified(inverse, Y, adjoint=adjoint).trouble


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
@pytest.mark.parametrize("name", ["square", "tall", "wide", "repeated filters"])
def test_any_scale(name: str, scale: float) -> None:
    """Where squares leave the numbers nothing is claimed; the answer passes by the operator."""
    A = CASES[name]
    inverse = made(Convolution(scale * A.weight, A.geometry))
    for size in (0.0, 1e-290, 1e-150, 1.0, 1e150):
        if not size or 1e-290 < size / scale < 1e290:
            Y = size * images(A, 2)
            found = inverse.measured(Y)
            extreme = size * max(1.0, 1 / scale) > 1e140 or size < 1e-140
            assert found.backward_error <= TOLERANCE or extreme
            assert not certified(inverse, Y).trouble
            assert not size or certified_of_wrong(inverse, Y)


def certified_of_wrong(inverse: CircularInverse, Y: Tensor) -> str:
    blocks = inverse.blocks
    inverse.blocks = 1.001 * blocks
    try:
        return certified(inverse, Y).trouble
    finally:
        inverse.blocks = blocks


def test_single_precision() -> None:
    A = CASES["square"]
    inverse = made(Convolution(A.weight.float(), A.geometry))
    Y = images(A, 4).float()
    eps = torch.finfo(torch.float32).eps
    assert inverse.measured(Y).backward_error <= 10 * eps
    inverse.blocks *= 1 + 3e-4
    assert inverse.measured(Y).backward_error > 200 * eps


def test_a_batch_is_no_better_than_its_worst_image() -> None:
    A = CASES["square"]
    inverse = made(A)
    Y = images(A, 3)
    Y[:2] -= Y[:2].mean((-2, -1), keepdim=True)
    inverse.blocks[0] *= 1 + 1e-9  # of the mean
    found = inverse.measured(Y)
    errors = backward_errors(A, Y, found.value, False)
    assert float(errors[2]) > 1e3 * float(errors[:2].max())
    assert float(errors[2]) <= found.backward_error <= 4 * float(errors[2])


def test_solutions_take_no_product_with_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    A = convolution(kernel(3, 3, 3, 3), (20, 18), padding=1, padding_mode="circular")
    P = hesse.pinv(A)
    assert "method='circular'" in repr(P)
    x = images(A, 4, out=False)
    Y = A @ x
    expected = P @ Y
    torch.testing.assert_close(expected, x, rtol=0, atol=1e-10)

    def forbidden(*_: object) -> Tensor:
        raise AssertionError

    for module in ("frequencies", "certificate", "products"):
        for name in ("convolve", "convolve_transposed"):
            monkeypatch.setattr(f"hesse.convolutions.{module}.{name}", forbidden)
    monkeypatch.setattr(torch.nn.functional, "conv2d", forbidden)
    assert torch.equal(P @ Y, expected)
    assert torch.equal(P.T @ x, P.T @ x)


@pytest.mark.parametrize("size", [(6, 5), (5, 6)])
@pytest.mark.parametrize("place", [0, 1])
def test_of_one_channel_the_number_is_exact(size: tuple[int, int], place: int) -> None:
    """Where the bound of the norm is the norm: of a frequency that is its own opposite, and of one that stands for two."""
    A = convolution(kernel(1, 1, 3, 3), size, padding=1, padding_mode="circular")
    inverse, Y = made(A), images(A, 3)
    inverse.blocks[place] *= 1 + 1e-6
    found = inverse.measured(Y)
    r = Y.flatten(1) - found.value.flatten(1) @ matrix(A).mT
    scale = torch.linalg.matrix_norm(matrix(A), 2) * found.value.flatten(1).norm(dim=1) + Y.flatten(1).norm(dim=1)
    truth = float((r.norm(dim=1) / scale).max())
    assert truth > TOLERANCE and found.backward_error == pytest.approx(truth, rel=1e-6)
