"""`solve` and `lstsq` of convolutions have derivatives; of others they are refused where they would be silent zeros."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hesse
from hesse.convolutions.factory import convolution
from hesse.core.errors import HesseError, UnsupportedError
from hesse.operators import Dense

REAL = torch.float64
SIZE = (2, 5, 4)


def kernel(out: int) -> Tensor:
    weight = 0.2 * torch.randn(out, 2, 3, 3, dtype=REAL, generator=torch.Generator().manual_seed(out))
    weight[:2, :, 1, 1] += torch.eye(2, dtype=REAL)
    return weight


def dense_answer(weight: Tensor, y: Tensor) -> Tensor:
    """By PyTorch's own convolution and pseudo-inverse."""
    eye = torch.eye(40, dtype=REAL).reshape(-1, *SIZE)
    M = torch.nn.functional.conv2d(eye, weight, padding=1).flatten(1).mT
    return (torch.linalg.pinv(M) @ y.flatten()).reshape(SIZE)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("question", "out"), [(hesse.solve, 2), (hesse.lstsq, 2), (hesse.lstsq, 3)])
def test_derivatives(question, out: int) -> None:
    weight = kernel(out)
    y = torch.randn(out, 5, 4, dtype=REAL, generator=torch.Generator().manual_seed(1))
    u = torch.randn(SIZE, dtype=REAL, generator=torch.Generator().manual_seed(2))

    def found(w: Tensor, b: Tensor) -> Tensor:
        return (question(convolution(w, SIZE, padding=1), b) * u).sum()

    def known(w: Tensor, b: Tensor) -> Tensor:
        return (dense_answer(w, b) * u).sum()

    exact = torch.func.grad(known, argnums=(0, 1))(weight, y)
    for first, second in zip(torch.func.grad(found, argnums=(0, 1))(weight, y), exact, strict=True):
        assert torch.allclose(first, second, rtol=1e-9, atol=1e-11)
    leaves = weight.clone().requires_grad_(), y.clone().requires_grad_()
    for first, second in zip(torch.autograd.grad(found(*leaves), leaves), exact, strict=True):
        assert torch.allclose(first, second, rtol=1e-9, atol=1e-11)
    batch = torch.stack([y, 2 * y])
    mapped = torch.func.vmap(lambda b: question(convolution(weight, SIZE, padding=1), b))(batch)
    assert torch.allclose(mapped[1], 2 * dense_answer(weight, y), rtol=1e-10)


def test_transposed_ones() -> None:
    y = torch.randn(SIZE, dtype=REAL).requires_grad_()
    A = convolution(kernel(2), SIZE, padding=1)
    x = hesse.solve(A.T, y)
    assert x.requires_grad
    assert torch.allclose(A.T @ x, y)


def test_numbers_without_derivatives_stay_what_they_were() -> None:
    A = convolution(kernel(2), SIZE, padding=1)
    y = torch.randn(SIZE, dtype=REAL)
    assert not hesse.solve(A, y).requires_grad
    with torch.no_grad():
        assert not hesse.solve(convolution(kernel(2).requires_grad_(), SIZE, padding=1), y).requires_grad


def test_a_singular_system_is_still_refused() -> None:
    A = convolution(torch.ones(1, 1, 3, 3, dtype=REAL), (1, 5, 5), padding=1)
    with pytest.raises(HesseError, match="singular"):
        hesse.solve(A, torch.randn(1, 5, 5, dtype=REAL).requires_grad_())


@pytest.mark.parametrize("question", [hesse.solve, hesse.lstsq])
def test_silent_zeros_are_refused(question) -> None:
    A = Dense(torch.eye(3, dtype=REAL))
    with pytest.raises(UnsupportedError, match="without derivatives"):
        torch.func.grad(lambda b: question(A, b).sum())(torch.ones(3, dtype=REAL))
    with pytest.raises(UnsupportedError, match="batch axes"):
        torch.func.vmap(lambda b: question(A, b))(torch.ones(2, 3, dtype=REAL))
