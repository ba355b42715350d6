"""Every operator, its transpose and its adjoint, under all laws and against its matrix."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hesse.check import assert_operator
from hesse.operators import Conjugate, LinearOperator

from .zoo import flat, operators

REAL, SINGLE, COMPLEX = operators(torch.float64), operators(torch.float32), operators(torch.complex128)
ZOO = {("real", name): case for name, case in REAL.items()}
ZOO |= {("complex", name): case for name, case in COMPLEX.items()}
KEYS = pytest.mark.parametrize("key", ZOO, ids=": ".join)


def assert_is_matrix(A: LinearOperator, M: Tensor) -> None:
    eps = torch.finfo(M.dtype).eps
    generator = torch.Generator().manual_seed(7)
    assert A.shape == tuple(M.shape)
    for _ in range(2):
        v = A.in_space.normal(generator=generator)
        torch.testing.assert_close(flat(A @ v), M @ flat(v), rtol=1e3 * eps, atol=1e3 * eps)


@KEYS
def test_laws(key: tuple[str, str], untouched: None) -> None:
    A, _ = ZOO[key]
    assert_operator(A)
    assert_operator(A.T)
    if key[0] == "complex":
        assert_operator(A.H)
        assert_operator(Conjugate(A))


def test_single_precision(sweep: Callable[..., list[str]], untouched: None) -> None:
    for name in sweep(list(SINGLE), 15):
        A, M = SINGLE[name]
        assert_operator(A)
        assert_is_matrix(A, M)
        assert_is_matrix(A.T, M.mT)


@KEYS
def test_matrix(key: tuple[str, str]) -> None:
    A, M = ZOO[key]
    assert_is_matrix(A, M)
    assert_is_matrix(A.T, M.mT)
    assert_is_matrix(A.H, M.mH)
    assert_is_matrix(Conjugate(A), M.conj())
    assert_is_matrix(A.T.H, M.conj())
    assert_is_matrix(A.H @ A, M.mH @ M)
    assert_is_matrix(3 * A - A / 2, 2.5 * M)


@KEYS
def test_autograd_passes_through_products(key: tuple[str, str]) -> None:
    A, M = ZOO[key]
    x = torch.randn(M.shape[1], dtype=M.dtype, generator=torch.Generator().manual_seed(3), requires_grad=True)
    y = A.flat @ x
    u = torch.randn(M.shape[0], dtype=M.dtype, generator=torch.Generator().manual_seed(4))
    (grad,) = torch.autograd.grad(y, x, u)
    tolerance = 1e3 * torch.finfo(M.dtype).eps
    torch.testing.assert_close(grad, M.mH @ u, rtol=tolerance, atol=tolerance)
