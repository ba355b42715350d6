"""Iterations against `torch.linalg.pinv`: shortest solutions for every rank, their certificates, and when they stall."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hesse.convolutions import krylov
from hesse.convolutions.krylov import KrylovInverse
from hesse.convolutions.operator import Convolution
from hesse.linalg.lsmr import lsmr

from .oracle import convolution, images, kernel, matrix
from .test_preconditioner import gaussian
from .test_winding import near_identity

EPS = torch.finfo(torch.float64).eps
COMPLEX = torch.complex128
CASES = {
    "identity and noise": convolution(near_identity(3, 0.3), (8, 7), padding=1),
    "blur": convolution(gaussian(1.0, 7), (12, 11), padding=3),
    "tall": convolution(kernel(6, 2, 3, 3), (6, 5), padding=1),
    "wide": convolution(kernel(2, 6, 3, 3), (6, 5), padding=1),
    "tall stride groups": convolution(kernel(16, 1, 3, 3), (7, 6), padding=1, stride=2, groups=2),
    "reflect": convolution(kernel(5, 2, 3), (13,), padding=1, padding_mode="reflect"),
    "circular": convolution(near_identity(2, 0.3), (6, 5), padding=1, padding_mode="circular"),
    "complex": convolution(kernel(2, 5, 3, 3, dtype=COMPLEX), (6, 5), padding=1),
    "complex, turned": convolution((0.6 + 0.8j) * near_identity(2, 0.3), (6, 7), padding=1),
    "box, no rank": convolution(torch.ones(1, 1, 3, 3).double(), (11, 8), padding=1),
    "repeated filters": convolution(kernel(3, 2, 3, 3).repeat(2, 1, 1, 1), (6, 5), padding=1),
    "zero channel": convolution(torch.cat([kernel(5, 2, 3), torch.zeros(5, 1, 3).double()], 1), (9,), padding=1),
    "dead cells": convolution(kernel(5, 2, 2), (9,), stride=4),
}


def pinv(A: Convolution, *, adjoint: bool = False) -> tuple[Tensor, float]:
    """The matrix, and its condition."""
    values = torch.linalg.svdvals(matrix(A))
    kept = values[values > 1e-12 * values[0]]
    P = torch.linalg.pinv(matrix(A), rtol=1e-12)
    return (P.mH if adjoint else P), float(values[0] / kept[-1])


@pytest.mark.sampled(9)
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_pseudo_inverse(name: str, adjoint: bool) -> None:
    A = CASES[name]
    P, condition = pinv(A, adjoint=adjoint)
    y = images(A, 3, out=not adjoint)
    y[1] *= 1e-8
    inverse = krylov.make(A)
    found = inverse.solve(y, adjoint=adjoint)
    assert not found.trouble and found.iterations < 500
    expected = y.flatten(1) @ P.mT
    error = (found.value.flatten(1) - expected).norm(dim=1) / expected.norm(dim=1)
    assert float(error.max()) <= 50 * condition * EPS
    applied = inverse.apply(y, adjoint=adjoint)
    assert torch.equal(applied.value, found.value) and applied.iterations == found.iterations


@pytest.mark.parametrize("name", ["tall", "wide"])
def test_certificate_is_that_of_the_solution(name: str) -> None:
    A = CASES[name]
    M, y = matrix(A), images(A, 2)
    norm = float(torch.linalg.matrix_norm(M, 2))
    for tolerance in (1e-3, 1e-8):
        found = krylov.make(A, tolerance=tolerance).solve(y)
        r = y.flatten(1) - found.value.flatten(1) @ M.mT
        assert found.residual == pytest.approx(float((r.norm(dim=1) / y.flatten(1).norm(dim=1)).max()), rel=1e-3)
        normal = float(((r @ M).norm(dim=1) / r.norm(dim=1)).max()) / norm
        assert normal <= found.normal_residual * (1 + 1e-6) and found.normal_residual <= 3 * normal
        assert min(found.residual, found.normal_residual) <= tolerance * (1 if name == "tall" else 20)
        assert 1 <= found.condition <= float(torch.linalg.cond(M)) * (1 + 1e-6)


@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("noise", [0.1, 0.3, 0.5])
def test_at_most_sixteen_iterations_near_the_identity(channels: int, noise: float) -> None:
    A = convolution(near_identity(channels, noise), (32, 32), padding=1)
    x = images(A, 1, out=False)
    inverse = krylov.make(A, tolerance=1e-7)
    found = inverse.apply(A @ x)
    assert not found.trouble and 0 < found.iterations <= 16
    assert float((found.value - x).norm() / x.norm()) < 1e-6


def test_adjoint_is_preconditioned_by_the_adjoint() -> None:
    A = convolution(near_identity(6, 0.6), (16, 16), padding=1)
    inverse = krylov.make(A)
    assert inverse.preconditioner is not None
    y = images(A, 2)
    assert inverse.apply(y, adjoint=True).iterations <= inverse.apply(y).iterations + 3


def test_too_few_iterations_are_said() -> None:
    A = CASES["identity and noise"]
    found = krylov.make(A, tolerance=1e-10, max_iterations=4).solve(images(A, 2))
    assert 1e-9 < found.residual < 1e-2 and found.trouble == "no convergence in 4 iterations"


def test_small_residuals_that_rounding_keeps_from_being_orthogonal_are_no_trouble() -> None:
    """Neither ``|r|`` nor ``|A^H r| / |r|`` can reach the tolerance; the part of r in the range of A does."""
    A = convolution(kernel(16, 2, 5, 5), (9, 8), padding=2, stride=2)
    y = A @ images(A, 2, out=False)
    y += 1e-5 * images(A, 2)
    tolerance = 8 * EPS
    assert "rounding errors" in lsmr(A, y.flatten(1), tolerance, 1000).trouble
    found = krylov.make(A).solve(y)
    assert not found.trouble and found.normal_residual > 1e3 * EPS and found.residual > 1e-6
    P, condition = pinv(A)
    expected = y.flatten(1) @ P.mT
    assert float((found.value.flatten(1) - expected).norm() / expected.norm()) <= 20 * condition * EPS


def test_stalling_is_said() -> None:
    A = convolution(kernel(4, 4, 3, 3), (16, 16), padding=1)
    inverse = krylov.make(A, max_iterations=100)
    assert inverse.preconditioner is None
    found = inverse.apply(images(A, 1))
    assert found.iterations == 100 and "no convergence in 100 iterations" in found.trouble


def test_condition_beyond_the_tolerance_is_said() -> None:
    A = CASES["tall"]
    inverse = krylov.make(A, rtol=0.9)
    found = inverse.apply(images(A, 1))
    assert "singular values have to be cut off" in found.trouble


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["identity and noise", "blur", "tall", "wide", "box, no rank", "complex"])
def test_norm_and_condition(name: str) -> None:
    A = CASES[name]
    _, condition = pinv(A)
    inverse = krylov.make(A)
    norm = float(torch.linalg.matrix_norm(matrix(A), 2))
    assert inverse.norm() == pytest.approx(norm, rel=1e-3)
    assert 0.8 * condition <= inverse.condition() <= 1.01 * condition


def test_zero_convolution_and_no_images() -> None:
    A = convolution(torch.zeros(2, 3, 3).double(), (5,), padding=1)
    inverse = krylov.make(A)
    found = inverse.apply(images(A, 2))
    assert not found.trouble and not bool(found.value.any()) and found.value.shape == (2, 3, 5)
    assert (inverse.norm(), inverse.condition()) == (0.0, 1.0)
    assert inverse.apply(images(A, 0)).value.shape == (0, 3, 5)
    assert not bool(inverse.apply(torch.zeros(1, 2, 5).double()).value.any())


def test_images_are_taken_in_parts_where_memory_is_short() -> None:
    A = CASES["tall"]
    y = images(A, 5)
    whole = krylov.make(A).solve(y)
    each = 8 * sum(A.shape) * 8
    parts = krylov.make(A, memory=2 * y.numel() * 8 + 2 * each + 8).solve(y)
    torch.testing.assert_close(parts.value, whole.value, rtol=1e-12, atol=1e-13)
    assert parts.residual == pytest.approx(whole.residual, rel=1e-6)


def test_single_precision() -> None:
    A = convolution(near_identity(3, 0.3).float(), (8, 7), padding=1)
    y = images(A, 2)
    found = krylov.make(A).apply(y)
    expected = y.double().flatten(1) @ torch.linalg.pinv(matrix(Convolution(A.weight.double(), A.geometry))).mT
    assert found.value.dtype == torch.float32 and not found.trouble
    torch.testing.assert_close(found.value.flatten(1).double(), expected, rtol=0, atol=1e-5)


def test_weight_that_asks_for_gradients_leaves_no_graph() -> None:
    A = Convolution(near_identity(2, 0.3).requires_grad_(), CASES["complex, turned"].geometry)
    inverse = krylov.make(A)
    assert isinstance(inverse, KrylovInverse)
    assert not inverse.apply(images(A, 1)).value.requires_grad
