"""Determinants against `torch.linalg.slogdet` of the matrix: the whole zoo, structures, derivatives, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.core.errors import LeafError, MemoryBudgetError, NonFiniteError, StructureError
from hesse.core.space import Space
from hesse.linalg.factor import factor
from hesse.linalg.pinv import pinv
from hesse.linalg.slogdet import slogdet
from hesse.linalg.slogdet_rules import SignLog, slogdet_rule
from hesse.operators import (
    BlockDiagonal,
    Congruence,
    Conjugate,
    Dense,
    Diagonal,
    Kronecker,
    LinearOperator,
    LowRank,
    Sparse,
    identity,
    restrict,
)

from .counted import Counted, random_matrix
from .test_factor import regular
from .test_pinv import DTYPES, ZOO

SQUARE = [key for key, (A, _) in ZOO.items() if A.shape[0] == A.shape[1]]


def same(found: SignLog, M: Tensor, tolerance: float = 1e-9) -> None:
    """Also where rounding makes a tiny determinant of none."""
    sign, logabs = torch.linalg.slogdet(M)
    assert found.sign.shape == found.logabs.shape == () and not found.logabs.is_complex()
    if float(logabs) < -25:
        assert float(found.logabs) < -25
        return
    assert float(found.logabs) == pytest.approx(float(logabs), rel=tolerance, abs=tolerance)
    torch.testing.assert_close(found.sign.to(sign.dtype), sign, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("key", SQUARE, ids=": ".join)
def test_the_zoo(key: tuple[str, str]) -> None:
    A, M = ZOO[key]
    same(slogdet(A), M.to(A.out_space.dtype).resolve_conj())
    same(slogdet(A.H), M.mH.to(A.out_space.dtype).resolve_conj())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", regular(torch.float64))
def test_structures(name: str, dtype: str) -> None:
    kind = DTYPES[dtype]
    A, M, _ = regular(kind)[name]
    same(slogdet(A), M)
    same(slogdet(-1.5 * A), -1.5 * M)
    same(slogdet(A.T @ A), M.mT @ M)
    same(slogdet(Congruence(A)), M.mH @ M)
    if A.in_space == A.out_space:
        same(slogdet(Congruence(A, A)), M.mH @ M @ M)
    same(slogdet(factor(A)), M)
    same(slogdet(pinv(A)), torch.linalg.inv(M))
    if kind.is_complex:
        same(slogdet((1 - 2j) * A), (1 - 2j) * M)


@pytest.mark.parametrize("seed", range(6))
def test_the_sign_of_sparse_ones(seed: int) -> None:
    """Permuted rows and columns: the pivots are off the diagonal."""
    M = torch.diag(random_matrix(7, seed=seed)) + torch.diag(random_matrix(6, seed=seed + 50), 1)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    M = M[order]
    same(slogdet(Sparse.of(M)), M)
    same(slogdet(Sparse.of(M) + 0.5 * identity(Sparse.of(M).in_space)), M + 0.5 * torch.eye(7, dtype=M.dtype))


def test_singular_ones() -> None:
    low = random_matrix(4, 2)
    into, out = Space.of(torch.zeros(2, 3)), Space.of(torch.zeros(3, 2))
    for A in (
        Dense(torch.zeros(3, 3)),
        Diagonal(torch.tensor([1.0, 0.0])),
        LowRank(low),
        Dense(low) @ Dense(low.mT),
        Congruence(Dense(low.mT)),
        0.0 * Dense(torch.eye(3)),
        Kronecker(random_matrix(3, 2), random_matrix(2, 3), into, out),
        BlockDiagonal({"a": Dense(low), "b": Dense(low.mT)}),
        Sparse.of(torch.tensor([[1.0, 2.0], [2.0, 4.0]])),
    ):
        found = slogdet(A)
        assert float(found.sign) == 0 and float(found.logabs) == -math.inf, A


def test_arrangements_of_leaves() -> None:
    space = Space.of({"w": torch.zeros(2, 2, dtype=torch.float64), "b": torch.zeros(3, dtype=torch.float64)})
    M = random_matrix(7, 7)
    A = Dense(M, space, space)
    same(slogdet(restrict(A, lambda name: True)), M)
    same(slogdet(restrict(A, ["b"])), M[4:, 4:])


def test_derivatives() -> None:
    M, L, R, d = (random_matrix(*s, seed=k).requires_grad_() for k, s in enumerate([(4, 4), (2, 2), (3, 3), (4,)]))
    f = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    places = torch.tensor([[0, 0, 1, 2, 2], [0, 1, 1, 2, 0]])
    values = random_matrix(5, seed=9).requires_grad_()

    def both(A: LinearOperator) -> tuple[Tensor, Tensor]:
        found = slogdet(A)
        return found.sign, found.logabs

    assert torch.autograd.gradcheck(lambda M: both(Dense(M))[1], M)
    assert torch.autograd.gradcheck(lambda M, d: both(Dense(M) @ Diagonal(d))[1], (M, d))
    assert torch.autograd.gradcheck(lambda L, R: both(Kronecker(L, R))[1], (L, R))
    assert torch.autograd.gradcheck(lambda M, f: both(f * BlockDiagonal({"a": Dense(M), "b": Counted(M)}))[1], (M, f))
    assert torch.autograd.gradcheck(lambda v: both(Sparse(places, v, 3, 3))[1], values)
    eye = identity(Dense(R).in_space)
    assert torch.autograd.gradcheck(lambda v: both(2.0 * Sparse(places, v, 3, 3) + eye)[1], values)
    C = random_matrix(3, 3, dtype=torch.complex128).requires_grad_()
    assert torch.autograd.gradcheck(lambda C: both(Conjugate(Dense(C)))[1], C)
    z = random_matrix(3, dtype=torch.complex128).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: both(Diagonal(z)), z)


def test_other_packages_register_rules() -> None:
    class Known(Counted):
        pass

    @slogdet_rule.register(Known)
    def _known(A: Known) -> SignLog:
        return SignLog(torch.tensor(-1.0), torch.tensor(3.0))

    A = Known(random_matrix(3, 3))
    assert slogdet(A) == (-1, 3)
    assert slogdet(BlockDiagonal({"a": A, "b": A})) == (1, 6)
    other = random_matrix(3, 3, seed=5)
    found, (sign, logabs) = slogdet(A @ Counted(other)), torch.linalg.slogdet(other)
    assert found.sign == -sign and float(found.logabs) == pytest.approx(3 + float(logabs))
    found = slogdet(A @ A.T)  # positive, whatever the rule says
    assert found.sign == 1


def test_half_precision_and_empty() -> None:
    M = random_matrix(5, 5, dtype=torch.float32).to(torch.bfloat16)
    for A in (Dense(M), Diagonal(M[0])):
        assert slogdet(A).logabs.dtype == torch.float32
    assert slogdet(Dense(torch.zeros(0, 0))) == (1, 0)
    assert slogdet(Kronecker(torch.zeros(0, 0), torch.eye(2))) == (1, 0)


def test_bad_input() -> None:
    with pytest.raises(StructureError, match="slogdet needs a square"):
        slogdet(Dense(random_matrix(2, 3)))
    with pytest.raises(LeafError, match="slogdet needs floating-point"):
        slogdet(Dense(torch.ones(2, 2, dtype=torch.int64)))
    bad: Any = random_matrix(3, 3)
    bad[1, 2] = torch.nan
    for A in (Dense(bad), Diagonal(bad[1]), Kronecker(bad, bad), Counted(bad), Sparse.of(bad)):
        with pytest.raises(NonFiniteError):
            slogdet(A)
    with pytest.raises(MemoryBudgetError, match=r"(?s)shape \(40, 40\)"):
        slogdet(Counted(random_matrix(40, 40)), memory=1000)
