"""Pseudo-inverses against `torch.linalg.pinv` of the matrix: the zoo, ranks, cut-offs, derivatives, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.check import assert_operator
from hesse.core.errors import (
    LeafError,
    MemoryBudgetError,
    NonFiniteError,
    NotConvergedError,
    StructureError,
    UnsupportedError,
)
from hesse.core.space import Space
from hesse.linalg import pinv_general
from hesse.linalg.pinv import pinv
from hesse.linalg.pinv_rules import pinv_rule
from hesse.operators import (
    BlockDiagonal,
    Congruence,
    Conjugate,
    Dense,
    Diagonal,
    Identity,
    Kronecker,
    LinearOperator,
    LowRank,
    Sparse,
    Tag,
    block_diagonal,
    identity,
    load,
    restrict,
    save,
)
from hesse.operators.pseudo_inverse import PseudoInverse
from tests.operators.zoo import operators

from .counted import PSD, Counted, random_matrix, tree_space, with_spectrum

DTYPES = {"float64": torch.float64, "complex128": torch.complex128}
ZOO = {(kind, name): case for kind, dtype in DTYPES.items() for name, case in operators(dtype).items()}


def matrix_of(A: LinearOperator) -> Tensor:
    """Column by column, by products with unit vectors."""
    eye = torch.eye(A.shape[1], dtype=A.in_space.dtype)
    columns = [A.out_space.ravel(A.mv(A.in_space.unravel(row))) for row in eye]
    return torch.stack(columns, -1) if columns else torch.zeros(A.shape, dtype=A.out_space.dtype)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found.resolve_conj(), expected.resolve_conj(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("key", ZOO, ids=": ".join)
def test_the_zoo(key: tuple[str, str]) -> None:
    A, M = ZOO[key]
    plus: Any = pinv(A)
    M = M.to(A.out_space.dtype)
    assert plus.shape == (A.shape[1], A.shape[0])
    assert (plus.in_space, plus.out_space) == (A.out_space, A.in_space)
    P = matrix_of(plus)
    close(P, torch.linalg.pinv(M))
    assert plus.rank == int(torch.linalg.matrix_rank(M)) and plus.rank + plus.truncated == min(M.shape)
    values = torch.linalg.svdvals(M)
    if plus.rank:
        assert plus.condition == pytest.approx(float(values[0] / values[plus.rank - 1]), rel=1e-8)
    assert plus.gap > 1e6 and (plus.truncated or plus.gap == math.inf)
    close(matrix_of(plus.H), P.mH)
    close(matrix_of(pinv(A.H)), P.mH)
    block = A.out_space.normal(2, 3)
    close(A.in_space.ravel(plus @ block, 2), A.out_space.ravel(block, 2) @ P.mT)
    assert_operator(plus)
    m, p, unit = float(values[0]), float(torch.linalg.matrix_norm(P, 2)), 100 * torch.finfo(torch.float64).eps
    assert float(torch.linalg.matrix_norm(M @ P @ M - M)) <= unit * m * plus.condition
    assert float(torch.linalg.matrix_norm(P @ M @ P - P)) <= unit * p * plus.condition
    for product in (M @ P, P @ M):
        assert float(torch.linalg.matrix_norm(product - product.mH)) <= unit * plus.condition


def with_values(rows: int, columns: int, values: list[float], dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    k = len(values)
    U = torch.linalg.qr(random_matrix(rows, k, dtype=dtype, seed=seed)).Q
    V = torch.linalg.qr(random_matrix(columns, k, dtype=dtype, seed=seed + 1)).Q
    return (U * torch.tensor(values, dtype=torch.float64).to(dtype)) @ V.mH


def truncating(dtype: torch.dtype) -> dict[str, tuple[LinearOperator, Tensor]]:
    """Operators whose singular values are spread, with their matrices."""
    wide = with_values(5, 8, [4.0, 1.0, 0.3, 1e-3, 2e-4], dtype)
    small = with_values(4, 3, [0.05, 3e-3, 1e-4], dtype, seed=3)
    left, right = with_values(3, 2, [2.0, 0.02], dtype, seed=5), with_values(2, 3, [1.0, 0.03], dtype, seed=7)
    d = torch.tensor([0.5, -2.0, 1e-3, 0.02], dtype=torch.float64).to(dtype)
    low = with_values(9, 3, [1.0, 0.1, 5e-4], dtype, seed=9)
    into, out = tree_space(8, dtype), tree_space(9, dtype)
    blocks = torch.block_diag(wide, small, d.diag())
    return {
        "dense": (Dense(wide, into), wide),
        "tall": (Dense(wide.mT, None, into), wide.mT),
        "unknown": (Counted(wide, into), wide),
        "diagonal": (Diagonal(d), d.diag()),
        "low rank": (LowRank(low, None, right.mT.repeat(3, 2)[:8, :3], into, out), low @ right.mT.repeat(3, 2)[:8, :3].mT),
        "kronecker": (Kronecker(left, right), torch.kron(left, right)),
        "scaled": (-0.01 * Dense(wide, into), -0.01 * wide),
        "conjugate": (Conjugate(Dense(wide, into)), wide.conj()),
        "congruence": (Congruence(Dense(wide, into)), wide.mH @ wide),
        "blocks": (BlockDiagonal({"z": Dense(wide), "a": Counted(small), "m": Diagonal(d)}), blocks),
        "blocks, small one first": (
            BlockDiagonal({"a": 1.0 * Dense(small), "z": Dense(wide)}),
            torch.block_diag(small, wide),
        ),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rtol", [1e-5, 7e-4, 0.01, 0.2, 1.0])
@pytest.mark.parametrize("name", truncating(torch.float64))
def test_one_cut_off_for_the_whole(name: str, rtol: float, dtype: str) -> None:
    A, M = truncating(DTYPES[dtype])[name]
    plus: Any = pinv(A, rtol=rtol)
    values = torch.linalg.svdvals(M)
    rank = int((values > rtol * values[0]).sum())
    assert (plus.rank, plus.truncated) == (rank, min(M.shape) - rank)
    close(matrix_of(plus), torch.linalg.pinv(M, rtol=rtol), 1e-7)
    close(matrix_of(plus.T), torch.linalg.pinv(M, rtol=rtol).mT, 1e-7)
    if rank:
        assert plus.condition == pytest.approx(float(values[0] / values[rank - 1]), rel=1e-6)
    if 0 < rank < len(values) and values[rank] > 1e-9:
        assert plus.gap == pytest.approx(float(values[rank - 1] / values[rank]), rel=1e-6)


def test_what_it_says() -> None:
    plus = pinv(Dense(with_values(5, 8, [4.0, 1.0, 0.3, 1e-3, 2e-4])), rtol=0.01)
    assert repr(plus) == "PseudoInverse(8 x 5, rank 3, 2 singular values dropped, by dense)"
    assert repr(pinv(Identity(tree_space(9)))) == "PseudoInverse(9 x 9, rank 9, by diagonal)"
    assert "by dense, diagonal)" in repr(pinv(BlockDiagonal({"a": Diagonal(torch.ones(2)), "b": Dense(torch.ones(2, 3))})))


def test_tags_and_symmetry_are_kept() -> None:
    M = with_spectrum(torch.tensor([0.0, 1e-17, 0.5, 2.0, 3.0], dtype=torch.float64))
    plus = pinv(Counted(M, tags=PSD | {Tag.SYMMETRIC}))
    assert plus.tags == PSD | {Tag.SYMMETRIC} and plus.T is plus
    P = matrix_of(plus)
    assert torch.equal(P, P.mT) and float(torch.linalg.eigvalsh(P)[0]) > -1e-14
    assert Tag.DIAGONAL in pinv(Diagonal(torch.ones(3))).tags
    assert not pinv(Counted(random_matrix(6, 6))).tags


def test_arrangements_of_leaves() -> None:
    space = Space.of({"w": torch.zeros(2, 3, dtype=torch.float64), "b": torch.zeros(3, dtype=torch.float64)})
    M = with_spectrum(torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 7, 8], dtype=torch.float64))
    A = Dense(M, space, space)
    swapped = restrict(A, ["b", "w"])
    order = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8])
    assert swapped.in_space.names == ("w", "b")
    close(matrix_of(pinv(swapped)), torch.linalg.pinv(M)[order][:, order])
    part = restrict(A, ["b"], out=["w"])
    close(matrix_of(pinv(part)), torch.linalg.pinv(M[:6, 6:]))
    apart = block_diagonal(A, "parameter")
    close(matrix_of(pinv(apart)), torch.linalg.pinv(torch.block_diag(M[:6, :6], M[6:, 6:])))
    crossed = block_diagonal(A, {"x": ["b"], "y": ["w"]})
    close(matrix_of(pinv(crossed)), torch.linalg.pinv(torch.block_diag(M[:6, :6], M[6:, 6:])))


def test_zero_and_empty_operators() -> None:
    for A in (0.0 * Dense(random_matrix(3, 4)), Dense(torch.zeros(3, 4)), Counted(torch.zeros(3, 4)), Diagonal(torch.zeros(3))):
        plus: Any = pinv(A)
        assert not matrix_of(plus).any() and (plus.rank, plus.condition, plus.gap) == (0, 1.0, math.inf)
    for shape in ((0, 4), (3, 0)):
        plus = pinv(Dense(torch.zeros(shape)))
        assert plus.shape == shape[::-1] and plus.rank == 0


def test_half_precision() -> None:
    M = random_matrix(6, 4, dtype=torch.float32).to(torch.bfloat16)
    for A in (Dense(M), Counted(M)):
        plus = pinv(A)
        v = random_matrix(6, dtype=torch.float32).to(torch.bfloat16)
        assert (plus @ v).dtype == torch.bfloat16
        close((plus @ v).double(), torch.linalg.pinv(M.double()) @ v.double(), 0.02)


def test_a_large_unknown_operator_is_inverted_at_each_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinv_general, "DENSE_DIM", 10)
    M = random_matrix(40, 25)
    A = Counted(M, tree_space(25), tree_space(40))
    plus: Any = pinv(A)
    assert (plus.rank, plus.truncated, plus.condition, plus.gap, plus.method) == (None, None, None, None, "lsmr")
    assert repr(plus) == "PseudoInverse(25 x 40, by lsmr)" and not A.blocks
    V = random_matrix(3, 40, seed=1)
    found = A.in_space.ravel(plus @ A.out_space.unravel(V), 1)
    close(found, V @ torch.linalg.pinv(M).mT, 1e-6)
    W = random_matrix(25, seed=2)
    close(A.out_space.ravel(plus.T @ A.in_space.unravel(W)), torch.linalg.pinv(M).mT @ W, 1e-6)
    hopeless = pinv(Counted(with_values(60, 60, torch.logspace(0, -7, 60).tolist())))
    with pytest.raises(NotConvergedError, match=r"(?s)lstsq by lsmr.*use hesse.lstsq\(A, b\) with damping=.*hesse.pinv\("):
        hopeless @ random_matrix(60)


def test_a_cut_off_needs_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    A = Counted(random_matrix(40, 25))
    with pytest.raises(MemoryBudgetError, match=r"(?s)shape \(40, 25\).*rtol=None.*damping"):
        pinv(A, rtol=1e-3, memory=1000)
    assert pinv(A, memory=1000).method == "lsmr"  # pyright: ignore
    monkeypatch.setattr(pinv_general, "DENSE_DIM", 10)
    with pytest.raises(UnsupportedError, match=r"(?s)singular values of its matrix.*\(40, 25\).*Dense"):
        pinv(A, rtol=1e-3)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)], ids=str)
def test_derivatives(shape: tuple[int, int]) -> None:
    M, v = random_matrix(*shape).requires_grad_(), random_matrix(shape[0], seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda M, v: pinv(Dense(M)) @ v, (M, v))
    assert torch.autograd.gradgradcheck(lambda M, v: pinv(Dense(M)) @ v, (M, v))
    L, R, b = (random_matrix(*s, seed=k).requires_grad_() for k, s in enumerate([(3, 2), (2, 2), (3, 2)]))
    assert torch.autograd.gradcheck(lambda L, R, b: pinv(Kronecker(L, R)) @ b, (L, R, b))
    d = random_matrix(4).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: pinv(2.0 * Diagonal(d)) @ torch.ones(4, dtype=torch.float64), d)


def test_derivatives_where_the_formula_does_not_hold_are_refused() -> None:
    M = with_values(5, 4, [3.0, 2.0, 1.0, 0.01]).requires_grad_()
    with pytest.raises(UnsupportedError, match=r"(?s)one dropped that is 0.0033 of the largest.*detach"):
        pinv(Dense(M), rtol=0.1)
    with torch.no_grad():
        assert pinv(Dense(M), rtol=0.1).rank == 3  # pyright: ignore
    d = torch.tensor([1.0, 0.01], requires_grad=True)
    with pytest.raises(UnsupportedError, match="detach"):
        pinv(Diagonal(d), rtol=0.1)
    low = (random_matrix(5, 2) @ random_matrix(2, 4)).requires_grad_()
    assert (pinv(Dense(low)) @ random_matrix(5)).requires_grad


def test_bad_input() -> None:
    with pytest.raises(StructureError, match="rtol >= 0"):
        pinv(Dense(random_matrix(2, 3)), rtol=-1.0)
    with pytest.raises(StructureError, match="rtol"):
        pinv(Dense(random_matrix(2, 3)), rtol=float("nan"))
    with pytest.raises(LeafError, match="floating-point"):
        pinv(Dense(torch.ones(2, 3, dtype=torch.int64)))
    real = Space.of(torch.zeros(3, dtype=torch.float64))
    with pytest.raises(StructureError, match="between real spaces, or between complex"):
        pinv(Dense(random_matrix(2, 3, dtype=torch.complex128), real))
    bad = random_matrix(3, 3)
    bad[1, 2] = torch.nan
    for A in (Dense(bad), Diagonal(bad[1]), Kronecker(bad, bad), LowRank(bad[:, :2], None, bad[:, 1:]), Counted(bad)):
        with pytest.raises(NonFiniteError):
            pinv(A)


@pytest.mark.parametrize("name", ["dense", "kronecker", "blocks", "diagonal", "low rank"])
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    A, _ = truncating(torch.float64)[name]
    plus: Any = pinv(A, rtol=0.01)
    save(plus, tmp_path / "p")
    again: Any = load(tmp_path / "p")
    assert isinstance(again, PseudoInverse) and repr(again) == repr(plus)
    assert (again.rank, again.truncated, again.condition, again.gap) == (plus.rank, plus.truncated, plus.condition, plus.gap)
    v = plus.in_space.normal()
    assert torch.equal(again.out_space.ravel(again @ v), plus.out_space.ravel(plus @ v))


def test_other_packages_register_rules() -> None:
    class Mirror(Counted):
        pass

    @pinv_rule.register(Mirror)
    def _mirror(A: Mirror, rtol: float | None, memory: Any) -> LinearOperator:
        return A.T

    M = torch.linalg.qr(random_matrix(5, 5)).Q
    A = Mirror(M)
    close(matrix_of(pinv(A)), M.mT)
    close(matrix_of(pinv(4.0 * A)), M.mT / 4)
    both: Any = pinv(BlockDiagonal({"a": A, "b": Dense(2 * M)}))
    close(matrix_of(both), torch.block_diag(M.mT, M.mT / 2))
    assert both.rank is None and both.method == "dense, structure"


def test_large_regular_sums_are_inverted_by_their_entries() -> None:
    n = 3200
    ones = torch.ones(n, dtype=torch.float64)
    step = torch.arange(n)
    A = Sparse(torch.stack([step, (step + 1) % n]), 0.25 * ones, n, n)
    b = random_matrix(n)
    total = A + 3.0 * identity(A.in_space)
    for operator in (total, total @ total, total.T):
        P = pinv(operator)
        assert (P.method, P.rank, P.truncated) == ("superlu", n, 0)
        torch.testing.assert_close(operator @ (P @ b), b, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(operator.T @ (P.T @ b), b, rtol=1e-12, atol=1e-12)
    assert pinv(A - 0.25 * identity(A.in_space)).method == "lsmr"  # of rank n - 1: constants are mapped to zero
