"""Least squares against numpy and the pseudo-inverse: by structure, matrix and LSMR; certificates and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hesse.core.errors import NonFiniteError, NotConvergedError, StructureError
from hesse.core.space import Space
from hesse.linalg import Answer, Solution, solve
from hesse.linalg.lstsq import lstsq
from hesse.linalg.lstsq_rules import lstsq_rule
from hesse.operators import BlockDiagonal, Conjugate, Dense, Diagonal, Identity, Kronecker, LinearOperator, LowRank, identity

from .counted import Counted, random_matrix, seeded, tree_space

DTYPES = {"float64": torch.float64, "complex128": torch.complex128}


def structured(dtype: torch.dtype) -> dict[str, tuple[LinearOperator, Tensor]]:
    def t(*shape: int, seed: int = 0) -> Tensor:
        return random_matrix(*shape, dtype=dtype, seed=seed)

    d = t(12)
    d[3], d[7] = 0, 0
    into, out = tree_space(12, dtype), tree_space(15, dtype)
    M, L, R = t(15, 12, seed=1), t(5, 4, seed=2), t(2, 3, seed=3)
    flat = t(15, 2, seed=4) @ t(2, 12, seed=5)
    low = LowRank(t(15, 3, seed=6), t(3, seed=7), t(12, 3, seed=8), into, out)
    low_matrix = (t(15, 3, seed=6) * t(3, seed=7)) @ t(12, 3, seed=8).mT
    return {
        "identity": (Identity(into), torch.eye(12, dtype=dtype)),
        "diagonal with zeros": (Diagonal(into.unravel(d)), d.diag()),
        "dense": (Dense(M, into, out), M),
        "wide": (Dense(M.mT, out, into), M.mT),
        "dense of low rank": (Dense(flat, into, out), flat),
        "scaled": (-2.5 * Dense(M, into, out), -2.5 * M),
        "conjugate": (Conjugate(Dense(M, into, out)), M.conj()),
        "kronecker": (Kronecker(L, R), torch.kron(L, R)),
        "low rank": (low, low_matrix),
        "transposed low rank": (low.T, low_matrix.mT),
        "blocks": (
            BlockDiagonal({"z": Dense(M), "a": Counted(L), "k": 2 * Diagonal(d)}),
            torch.block_diag(M, L, 2 * d.diag()),
        ),
    }


def expected(M: Tensor, b: Tensor, damping: float) -> Tensor:
    """By numpy's gelsd on the matrix with its damping rows."""
    rows = np.concatenate([M.numpy(), damping**0.5 * np.eye(M.shape[1])]) if damping else M.numpy()
    right = np.concatenate([b.numpy(), np.zeros(M.shape[1])]) if damping else b.numpy()
    return torch.from_numpy(np.linalg.lstsq(rows, right, rcond=1e-12)[0])


@pytest.mark.parametrize("damping", [0.0, 0.7])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", structured(torch.float64))
def test_structure(name: str, dtype: str, damping: float) -> None:
    A, M = structured(DTYPES[dtype])[name]
    M = M.resolve_conj()
    b = random_matrix(len(M), dtype=M.dtype, seed=9)
    found = lstsq(A, A.out_space.unravel(b), damping=damping, full=True)
    assert found.method == "structure" and found.iterations == 0
    x, right = A.in_space.ravel(found.value), expected(M, b, damping)
    torch.testing.assert_close(x, right, rtol=1e-9, atol=1e-9)
    assert found.residual == pytest.approx(float((b - M @ right).norm() / b.norm()), rel=1e-6, abs=1e-12)
    assert found.normal_residual is not None and (found.normal_residual < 1e-12 or found.residual < 1e-12)


@pytest.mark.parametrize("damping", [0.0, 0.7])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["auto", "dense", "lsmr"])
@pytest.mark.parametrize("shape", [(31, 14), (14, 31), (20, 20)], ids=str)
def test_any_operator(shape: tuple[int, int], method: str, dtype: str, damping: float) -> None:
    kind = DTYPES[dtype]
    M = random_matrix(*shape, dtype=kind)
    A = Counted(M, tree_space(shape[1], kind), tree_space(shape[0], kind))
    B = random_matrix(2, 2, shape[0], dtype=kind, seed=1)
    B[0, 1] = 0
    found = lstsq(A, A.out_space.unravel(B), method=method, damping=damping, rtol=1e-11, full=True)
    assert isinstance(found, Solution) and found.method == ("dense" if method == "auto" else method)
    assert found.value["w"].shape == (2, 2, 2, 3)
    x = A.in_space.ravel(found.value, 2)
    for i in range(4):
        right = expected(M, B.reshape(4, -1)[i], damping)
        torch.testing.assert_close(x.reshape(4, -1)[i], right, rtol=1e-7, atol=1e-7)
    assert not A.calls["mv"]
    values = torch.linalg.svdvals(M)
    if found.method == "dense":
        true = float(((values[0] ** 2 + damping) / (values[-1] ** 2 + damping)).sqrt())
        assert found.condition == pytest.approx(true, rel=1e-9)


def test_damping_is_that_of_the_normal_equations() -> None:
    J = Counted(random_matrix(40, 90), tree_space(90), tree_space(40))
    b = J.out_space.normal(generator=seeded(3))
    x = lstsq(J, b, damping=0.3, method="lsmr", rtol=1e-11)
    right = solve(J.T @ J + 0.3 * identity(J.in_space), J.T @ b, method="dense")
    torch.testing.assert_close(J.in_space.ravel(x), J.in_space.ravel(right), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", ["dense", "lsmr"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision(dtype: torch.dtype, method: str) -> None:
    M = random_matrix(50, 20).to(dtype)
    b = random_matrix(50, seed=1).to(dtype)
    found = lstsq(Counted(M), b, method=method, rtol=1e-4 if dtype == torch.float32 else 0.02, full=True)
    limit = 1e-3 if dtype == torch.float32 else 0.1
    assert found.value.dtype == dtype
    right = expected(M.double(), b.double(), 0.0)
    assert float((found.value.double() - right).norm() / right.norm()) < limit


def test_auto_takes_lsmr_for_large_operators() -> None:
    M = torch.cat([torch.eye(1100, dtype=torch.float64), 0.01 * random_matrix(200, 1100)])
    A, b = Counted(M), random_matrix(1300, seed=1)
    found = lstsq(A, b, full=True)
    assert found.method == "lsmr" and found.normal_residual <= 1e-8 and sum(A.blocks) < 60
    right = torch.linalg.solve(M.mT @ M, M.mT @ b)
    torch.testing.assert_close(found.value, right, rtol=1e-6, atol=1e-6)


def test_certificate_is_that_of_the_true_operator() -> None:
    M, b = random_matrix(30, 12), random_matrix(30, seed=1)
    with pytest.raises(NotConvergedError, match=r"(?s)normal residual.*3 iterations.*damping=.*method='dense'") as caught:
        lstsq(Counted(M), b, method="lsmr", max_iterations=3, damping=0.2)
    partial = caught.value.partial
    assert isinstance(partial, Solution) and partial.iterations == 3 and partial.method == "lsmr"
    r = b - M @ partial.value
    assert partial.residual == pytest.approx(float(r.norm() / b.norm()), rel=1e-9)
    whole = (r.norm() ** 2 + 0.2 * partial.value.norm() ** 2).sqrt()
    norm = (torch.linalg.matrix_norm(M, 2) ** 2 + 0.2).sqrt()
    least = float((M.mT @ r - 0.2 * partial.value).norm() / whole / norm)
    assert least <= partial.normal_residual <= 2 * least  # never flattered: its norm of A is one from below
    with pytest.warns(RuntimeWarning, match="damping"):
        found = lstsq(Counted(M), b, method="lsmr", max_iterations=3, damping=0.2, on_failure="return")
    assert torch.equal(found, partial.value)


def test_a_wrong_rule_is_caught_and_a_right_one_used() -> None:
    class Ruled(Counted):
        factor = 1.0

    @lstsq_rule.register(Ruled)
    def _ruled(A: Ruled, B: Tensor, damping: float, inner: Any) -> Answer:
        return Answer(A.factor * B @ torch.linalg.pinv(A.matrix).mT)

    A, b = Ruled(random_matrix(9, 5)), random_matrix(9, seed=1)
    assert lstsq(A, b, full=True).method == "structure"
    A.factor = 1.01
    with pytest.raises(NotConvergedError, match="structure"):
        lstsq(A, b)


def test_zero_operators_and_empty_ones() -> None:
    b = random_matrix(3)
    for A in (Counted(torch.zeros(3, 4, dtype=torch.float64)), Dense(torch.zeros(3, 4, dtype=torch.float64))):
        for method in ("auto", "dense", "lsmr"):
            found = lstsq(A, b, method=method, full=True)
            assert torch.equal(found.value, torch.zeros(4, dtype=torch.float64)) and found.residual == 1
    zero = 0.0 * Dense(random_matrix(3, 4))
    assert torch.equal(lstsq(zero, b), torch.zeros(4, dtype=torch.float64))
    for shape in ((0, 4), (3, 0), (0, 0)):
        for method in ("auto", "dense", "lsmr"):
            found = lstsq(Counted(random_matrix(*shape)), torch.ones(shape[0], dtype=torch.float64), method=method)
            assert torch.equal(found, torch.zeros(shape[1], dtype=torch.float64))


def test_refusals() -> None:
    A, b = Counted(random_matrix(5, 3)), random_matrix(5)
    with pytest.raises(StructureError, match="'auto', 'dense', 'lsmr'"):
        lstsq(A, b, method="cg")
    with pytest.raises(StructureError, match="'raise', 'return'"):
        lstsq(A, b, on_failure="ignore")
    for damping in (-1.0, float("inf"), float("nan")):
        with pytest.raises(StructureError, match="damping"):
            lstsq(A, b, damping=damping)
    with pytest.raises(StructureError, match="rtol"):
        lstsq(A, b, rtol=0.0)
    with pytest.raises(StructureError, match="right-hand side"):
        lstsq(A, random_matrix(3))
    with pytest.raises(NonFiniteError, match="lstsq needs a finite right-hand side"):
        lstsq(A, b * torch.nan)
    assert Space.of(lstsq(A, b)) == A.in_space


class Shifted(Counted):
    """Solved by a rule whose solutions are off by a vector."""

    def __init__(self, matrix: Tensor, off: Tensor) -> None:
        super().__init__(matrix)
        self.off = off


@lstsq_rule.register(Shifted)
def _shifted(A: Shifted, B: Tensor, damping: float, inner: Any) -> Answer:
    return Answer(B @ torch.linalg.pinv(A.matrix).mT + A.off)


@pytest.mark.parametrize("size", [0.0, 1e-7, 1e-4])
def test_gradients_that_are_rounding_are_accepted(size: float) -> None:
    """A long x that nearly solves an ill-conditioned problem: its residual is rounding, or too small for a clean gradient."""
    U, V = (torch.linalg.qr(random_matrix(n, 12, seed=n)).Q for n in (30, 12))
    M = (U * torch.logspace(0, -10, 12, dtype=torch.float64)) @ V.mT
    across = torch.linalg.qr(torch.cat([U, random_matrix(30, 1, seed=6)], 1)).Q[:, -1]
    b = U[:, -1] + size * across  # mostly along the smallest singular value: |A| |x| = 1e10 |b|
    for A in (Dense(M), Counted(M)):
        found = lstsq(A, b, full=True)
        assert found.residual > 1e-8 < found.normal_residual  # neither of the other two criteria
        right = torch.linalg.pinv(M) @ b
        assert float((found.value - right).norm() / right.norm()) < 1e-4
    with pytest.raises(NotConvergedError, match="structure"):
        lstsq(Shifted(M, 1e-3 * V[:, 0]), b)


@pytest.mark.parametrize("method", ["auto", "lsmr"])
@pytest.mark.parametrize("damping", [1e-2, 1e-5, 1e-14])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_damped_gradients_that_are_rounding_are_accepted(dtype: torch.dtype, rtol: float, damping: float, method: str) -> None:
    top = torch.ones(30, dtype=torch.float64)
    top[0] = 1e4
    for seed in range(5):
        U, V = (torch.linalg.qr(random_matrix(30, 30, seed=2 * seed + k)).Q for k in range(2))
        M, b = ((U * top) @ V.mT).to(dtype), random_matrix(30, seed=seed + 50).to(dtype)
        right = expected(M.double(), b.double(), damping)
        found = lstsq(Dense(M), b, method=method, damping=damping, rtol=rtol).double()
        assert float((found - right).norm() / right.norm()) < 1e5 * rtol
        with pytest.raises(NotConvergedError, match=r"raise damping="):  # wrong by a percent of its length
            lstsq(Shifted(M, 0.01 * right.norm() * V[:, 0].to(dtype)), b, damping=damping)
