"""Factorizations: systems, least squares and determinants against torch on the matrix; saved, loaded, transposed, refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hesse
from hesse.check import assert_operator
from hesse.core.errors import (
    LeafError,
    MemoryBudgetError,
    NonFiniteError,
    NotConvergedError,
    StructureError,
    UnsupportedError,
)
from hesse.linalg import Answer, dense, lstsq, solve
from hesse.linalg.factor import Factorization, factor, factor_rule
from hesse.linalg.pinv import pinv
from hesse.operators import (
    BlockDiagonal,
    Conjugate,
    Dense,
    Diagonal,
    Identity,
    Kronecker,
    LinearOperator,
    Sparse,
    Tag,
    load,
    save,
    storable,
)

from .counted import PSD, Counted, random_matrix, tree_space, with_spectrum
from .test_pinv import DTYPES, ZOO, close, with_values

WEAK = 1e-6


def band(dtype: torch.dtype, n: int = 30, seed: int = 0) -> Sparse:
    """A matrix with three diagonals, not symmetric."""
    i = torch.arange(n)
    rows, columns = torch.cat([i, i[1:], i[:-1]]), torch.cat([i, i[:-1], i[1:]])
    values = random_matrix(len(rows), dtype=dtype, seed=seed)
    values[:n] += 4
    return Sparse(torch.stack([rows, columns]), values, n, n)


def regular(dtype: torch.dtype) -> dict[str, tuple[LinearOperator, Tensor, str]]:
    """Square operators that are not singular, with their matrices and the method that suits them."""
    space = tree_space(12, dtype)
    M = random_matrix(12, 12, dtype=dtype)
    S = with_spectrum(torch.linspace(1, 5, 12, dtype=torch.float64), dtype)
    L, R = random_matrix(3, 3, dtype=dtype, seed=1), random_matrix(4, 4, dtype=dtype, seed=2)
    d = random_matrix(12, dtype=dtype, seed=3)
    B = band(dtype)
    K = B.scipy_array().toarray()
    blocks = {"z": Dense(L), "a": Counted(R, tags=frozenset()), "m": Diagonal(d)}
    return {
        "dense": (Dense(M, space), M, "lu"),
        "unknown": (Counted(M, space), M, "lu"),
        "definite": (Dense(S, space, space, PSD), S, "cholesky"),
        "unknown definite": (Counted(S, space, space, PSD), S, "cholesky"),
        "falsely definite": (Dense(S - 2.125 * torch.eye(12), tags=PSD), S - 2.125 * torch.eye(12), "lu"),
        "diagonal": (Diagonal(space.unravel(d)), d.diag(), "diagonal"),
        "identity": (Identity(space), torch.eye(12, dtype=dtype), "diagonal"),
        "sparse": (B, torch.from_numpy(K), "superlu"),
        "sparse sum": (B @ B.T + 2.0 * Identity(B.in_space), torch.from_numpy(K @ K.T) + 2 * torch.eye(30), "superlu"),
        "kronecker": (Kronecker(L, R), torch.kron(L, R), "kronecker"),
        "blocks": (BlockDiagonal(blocks), torch.block_diag(L, R, d.diag()), "diagonal, lu"),
        "scaled": (-2.5 * Dense(M, space), -2.5 * M, "lu"),
        "conjugate": (Conjugate(Dense(M, space)), M.conj().resolve_conj(), "lu"),
        "transposed blocks": (BlockDiagonal(blocks).T, torch.block_diag(L, R, d.diag()).mT, "diagonal, lu"),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", regular(torch.float64))
def test_square_operators(name: str, dtype: str) -> None:
    A, M, method = regular(DTYPES[dtype])[name]
    F = factor(A)
    assert isinstance(F, Factorization) and F.method == method and not F.truncated
    for G, N in ((F, M), (F.T, M.mT), (F.H, M.mH.resolve_conj()), (F.T.T, M)):
        B = random_matrix(2, 3, len(M), dtype=M.dtype, seed=5)
        found = solve(G, G.out_space.unravel(B), full=True)
        assert found.residual < 1e-11 and (found.method == method or not isinstance(G, Factorization))
        right = torch.linalg.solve(N, B.reshape(6, -1).mT).mT.reshape(2, 3, -1)
        close(G.in_space.ravel(found.value, 2), right)
        close(G.in_space.ravel(lstsq(G, G.out_space.unravel(B)), 2), right)
    b = F.out_space.unravel(random_matrix(len(M), dtype=M.dtype, seed=6))
    close(F.in_space.ravel(F.solve(b)), torch.linalg.solve(M, F.out_space.ravel(b)))
    close(F.in_space.ravel(F.lstsq(b)), torch.linalg.solve(M, F.out_space.ravel(b)))
    assert F.logdet() == pytest.approx(float(torch.linalg.slogdet(M)[1]), rel=1e-10, abs=1e-10)
    assert F.T.logdet() == F.logdet()  # pyright: ignore
    true = float(torch.linalg.cond(M, 2))
    assert F.condition is not None and true / 50 < F.condition < 50 * true
    full = F.solve(b, full=True)
    error = float((F.in_space.ravel(full.value) - torch.linalg.solve(M, F.out_space.ravel(b))).norm())
    assert error <= full.forward_error * float(F.in_space.ravel(full.value).norm()) < WEAK and full.truncated == 0
    close(F.in_space.ravel(pinv(F) @ b), torch.linalg.solve(M, F.out_space.ravel(b)))


@pytest.mark.parametrize("key", ZOO, ids=": ".join)
def test_the_zoo(key: tuple[str, str]) -> None:
    A, M = ZOO[key]
    M = M.to(A.out_space.dtype)
    F = factor(A)
    assert_operator(F)
    assert (F.in_space, F.out_space, F.tags, F.mass) == (A.in_space, A.out_space, A.tags, A.mass)
    close(dense(F), M)
    b = A.out_space.normal(3)
    right = A.out_space.ravel(b, 1) @ torch.linalg.pinv(M).mT
    close(A.in_space.ravel(F.lstsq(b), 1), right)
    close(A.in_space.ravel(pinv(F) @ b, 1), right)
    assert isinstance(F.T, Factorization)
    close(A.out_space.ravel(F.T.lstsq(A.in_space.normal())), torch.linalg.pinv(M).mT @ A.in_space.ravel(A.in_space.normal()))
    full = F.lstsq(b, full=True)
    assert full.method == F.method and full.truncated == F.truncated == min(M.shape) - int(torch.linalg.matrix_rank(M))
    assert full.forward_error < 1e-3


def singular(dtype: torch.dtype) -> dict[str, tuple[LinearOperator, Tensor, int]]:
    M, wide = with_values(6, 6, [3.0, 2.0, 1.0], dtype), with_values(2, 5, [2.0, 1.0], dtype)
    d = torch.tensor([1.0, 0, 2.0, 0], dtype=torch.float64).to(dtype)
    L = with_values(2, 2, [1.0], dtype)
    return {
        "dense": (Dense(M), M, 3),
        "unknown": (Counted(M), M, 3),
        "diagonal": (Diagonal(d), d.diag(), 2),
        "kronecker": (Kronecker(L, L), torch.kron(L, L), 3),
        "blocks": (BlockDiagonal({"a": Dense(M), "b": Diagonal(d)}), torch.block_diag(M, d.diag()), 5),
        "wide and tall blocks": (BlockDiagonal({"a": Dense(wide), "b": Dense(wide.mT)}), torch.block_diag(wide, wide.mT), 3),
        "scaled": (2.0 * Diagonal(d), 2 * d.diag(), 2),
        "zero": (0.0 * Dense(M), 0 * M, 6),
        "conjugate": (Conjugate(Dense(M)), M.conj(), 3),
        "sparse": (Sparse.of(M[:, :1] @ M[:1] + 0 * M), M[:, :1] @ M[:1], 5),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", singular(torch.float64))
def test_singular_operators(name: str, dtype: str) -> None:
    A, M, missing = singular(DTYPES[dtype])[name]
    F = factor(A)
    assert F.truncated == missing and F.logdet() == -math.inf and f"rank {len(M) - missing}" in repr(F)
    b = A.out_space.unravel(random_matrix(len(M), dtype=M.dtype, seed=6))
    close(A.in_space.ravel(F.lstsq(b)), torch.linalg.pinv(M) @ A.out_space.ravel(b))
    with pytest.raises(NotConvergedError, match=rf"(?s)singular.*null space of dimension {missing}.*hesse.pinv\(A\) @ b"):
        F.solve(b)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)], ids=str)
def test_rectangular_matrices(shape: tuple[int, int]) -> None:
    M = random_matrix(*shape)
    F = factor(Dense(M))
    assert repr(F) == f"SvdFactorization({shape[0]} x {shape[1]}, by svd)"
    b = random_matrix(shape[0], seed=1)
    close(F.lstsq(b), torch.linalg.pinv(M) @ b)
    damped = torch.linalg.solve(M.mT @ M + 0.3 * torch.eye(shape[1], dtype=M.dtype), M.mT @ b)
    close(lstsq(F, b, damping=0.3), damped)
    close(lstsq(factor(BlockDiagonal({"a": Dense(M)})), {"a": b}, damping=0.3)["a"], damped)
    assert F.condition == pytest.approx(float(torch.linalg.cond(M)), rel=1e-10)
    with pytest.raises(StructureError, match="solve needs a square"):
        F.solve(b)
    with pytest.raises(StructureError, match="logdet needs a square"):
        F.logdet()


def test_the_matrix_is_made_and_factored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    A = Counted(random_matrix(15, 15))
    F = factor(A)
    spent = sum(A.blocks)
    monkeypatch.setattr(torch.linalg, "lu_factor_ex", None)
    for seed in range(4):
        b = random_matrix(15, seed=seed)
        close(F.solve(b), torch.linalg.solve(A.matrix, b))
    assert spent == 15 == sum(A.blocks) and not A.calls["mv"]
    assert factor(F) is F


def test_a_changed_matrix_is_noticed() -> None:
    M = random_matrix(6, 6)
    F = factor(Dense(M))
    M += torch.eye(6)
    with pytest.raises(NotConvergedError, match="solve by lu"):
        F.solve(random_matrix(6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision(dtype: torch.dtype) -> None:
    M, b = random_matrix(9, 9).to(dtype), random_matrix(9, seed=1).to(dtype)
    F = factor(Dense(M))
    found = F.solve(b, full=True)
    assert found.value.dtype == dtype
    right = torch.linalg.solve(M.double(), b.double())
    error = float((found.value.double() - right).norm() / right.norm())
    assert error < (1e-4 if dtype == torch.float32 else 0.05) and error <= found.forward_error


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*regular(torch.float64), *(f"singular {name}" for name in singular(torch.float64))])
def test_saved_and_loaded_bit_for_bit(name: str, dtype: str, tmp_path: Path) -> None:
    kind = DTYPES[dtype]
    A = singular(kind)[name.removeprefix("singular ")][0] if name.startswith("singular ") else regular(kind)[name][0]
    if type(A) is Counted:
        assert type(factor(A).operator) is Dense
    for F in (factor(A), factor(A).T):
        save(F, tmp_path / "f")
        G = load(tmp_path / "f")
        assert isinstance(F, Factorization) and isinstance(G, Factorization)
        assert type(G) is type(F) and repr(G) == repr(F) and G.condition == F.condition
        v = F.out_space.normal()
        assert torch.equal(G.in_space.ravel(G.lstsq(v)), F.in_space.ravel(F.lstsq(v)))
        assert G.logdet() == F.logdet()


def test_the_pseudo_inverse_by_factors_is_saved_as_well(tmp_path: Path) -> None:
    F = factor(Dense(random_matrix(5, 5)))
    P = pinv(F)
    assert repr(P) == "PseudoInverse(5 x 5, rank 5, by lu)" and P.condition == F.condition  # pyright: ignore
    save(P, tmp_path / "p")
    v = random_matrix(5, seed=1)
    assert torch.equal(load(tmp_path / "p") @ v, P @ v)
    close(P.T @ v, torch.linalg.inv(F.operator.matrix).mT @ v)  # pyright: ignore
    assert pinv(F, rtol=0.5).rank < 5  # pyright: ignore


def test_mass_is_kept(tmp_path: Path) -> None:
    A = Dense(random_matrix(3, 3))
    A.mass = 2.5
    save(factor(A), tmp_path / "f")
    assert factor(A).mass == load(tmp_path / "f").mass == 2.5
    B = Counted(random_matrix(3, 3))
    B.mass = 2.5
    assert factor(B).mass == 2.5


class Reflection(LinearOperator):
    """``v -> v - 2 u (u, v)`` with a unit vector u: its own inverse."""

    def __init__(self, u: Tensor) -> None:
        self.u, self.in_space, self.out_space = u, tree_space(len(u)), tree_space(len(u))

    def mv(self, v: Any) -> Any:
        flat = self.in_space.ravel(v)
        return self.in_space.unravel(flat - 2 * self.u * (self.u @ flat))

    def transpose(self) -> LinearOperator:
        return Reflection(self.u)


class ReflectionFactors(Factorization):
    """What another package writes: an answer, a condition number, and a storing rule."""

    wrong = 0.0

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(operator, "mirror")

    @property
    def condition(self) -> float:
        return 1.0

    def answer(self, B: Tensor, *, adjoint: bool = False) -> Answer:
        u = self.operator.u  # pyright: ignore
        return Answer((1 + self.wrong) * (B - 2 * (B @ u)[:, None] * u), iterations=3)


def test_other_packages_write_their_own(tmp_path: Path) -> None:
    u = torch.nn.functional.normalize(random_matrix(11), dim=0)
    A = Reflection(u)
    factor_rule.register(Reflection)(lambda A, memory: ReflectionFactors(A))
    storable.register(Reflection)(lambda A: {"u": A.u})
    storable.register(ReflectionFactors)(lambda A: {"operator": A.operator})
    try:
        F = factor(A)
        b = A.out_space.unravel(random_matrix(11, seed=1))
        found = F.solve(b, full=True)
        close(A.in_space.ravel(found.value), A.in_space.ravel(A @ b))
        assert (found.method, found.condition, found.iterations) == ("mirror", 1.0, 3)
        assert found.forward_error < 1e-14
        save(F.T, tmp_path / "f")
        again: Any = load(tmp_path / "f")
        assert torch.equal(A.in_space.ravel(again.solve(b)), A.in_space.ravel(found.value))
        with pytest.raises(UnsupportedError, match="has no log-determinant"):
            F.logdet()
        both = factor(BlockDiagonal({"a": A, "b": Dense(random_matrix(2, 2))}))
        assert both.method == "lu, mirror"
        F.wrong = 1e-4  # pyright: ignore
        assert F.solve(b, full=True).residual < 1e-7  # refined
        F.wrong = 3.0  # pyright: ignore
        with pytest.raises(NotConvergedError, match="solve by mirror"):
            F.solve(b)
        with pytest.raises(NotConvergedError, match="lstsq by mirror"):
            F.lstsq(b)
    finally:
        del storable._rules[Reflection], storable._rules[ReflectionFactors]


def test_bad_input() -> None:
    with pytest.raises(LeafError, match="factor needs floating-point"):
        factor(Dense(torch.ones(2, 2, dtype=torch.int64)))
    bad = random_matrix(3, 3)
    bad[1, 2] = torch.nan
    for A in (Dense(bad), Diagonal(bad[1]), Kronecker(bad, bad), Counted(bad), Sparse.of(bad)):
        with pytest.raises(NonFiniteError):
            factor(A)
    with pytest.raises(MemoryBudgetError, match=r"(?s)shape \(40, 40\).*memory=.*hesse.solve"):
        factor(Counted(random_matrix(40, 40)), memory=1000)
    with pytest.raises(StructureError, match="right-hand side"):
        factor(Dense(random_matrix(3, 3))).solve(random_matrix(4))
    assert Tag.PSD in factor(Identity(tree_space(9))).tags
    assert hesse.solve(factor(Dense(torch.eye(2))), torch.ones(2)).tolist() == [1.0, 1.0]


def test_empty_ones() -> None:
    for shape in ((0, 0), (0, 3), (3, 0)):
        F = factor(Dense(torch.zeros(shape)))
        assert F.lstsq(torch.ones(shape[0])).tolist() == [0.0] * shape[1]
    assert factor(Dense(torch.zeros(0, 0))).logdet() == 0.0
