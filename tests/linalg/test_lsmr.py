"""LSMR against the pseudo-inverse and the normal equations: rectangular, damped, rank-deficient, batched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.linalg.lsmr import _State, lsmr
from hesse.operators import LinearOperator

from .counted import Counted, random_matrix, tree_space

DTYPES = {"float64": torch.float64, "complex128": torch.complex128}
SHAPES = [(60, 25), (25, 60), (40, 40)]


def damped(M: Tensor, B: Tensor, damping: float) -> Tensor:
    """Rows x by the normal equations of the smaller side; without damping by the pseudo-inverse."""
    if not damping:
        return B @ torch.linalg.pinv(M, rtol=1e-12).mT
    eye = torch.eye(M.shape[1], dtype=M.dtype)
    return torch.linalg.solve(M.mH @ M + damping * eye, M.mH @ B.mT).mT


def of_rank(rank: int, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return random_matrix(rows, rank, dtype=dtype) @ random_matrix(rank, columns, dtype=dtype, seed=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("damping", [0.0, 2.5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rank", [None, 7])
def test_least_squares_of_least_norm(rank: int | None, shape: tuple[int, int], damping: float, dtype: str) -> None:
    kind = DTYPES[dtype]
    M = random_matrix(*shape, dtype=kind) if rank is None else of_rank(rank, *shape, kind)
    A = Counted(M, tree_space(shape[1], kind), tree_space(shape[0], kind))
    B = random_matrix(3, shape[0], dtype=kind, seed=2)
    found = lsmr(A, B, 1e-12, 2000, damping=damping)
    assert not found.trouble
    torch.testing.assert_close(found.value, damped(M, B, damping), rtol=1e-8, atol=1e-8)
    true_norm = (float(torch.linalg.matrix_norm(M, 2)) ** 2 + damping) ** 0.5
    assert found.norm is not None and 0.7 * true_norm <= found.norm <= true_norm * (1 + 1e-12)
    assert A.blocks[:2] == [3, 3] and not A.calls["mv"]


def test_steps_are_bounded_by_the_number_of_distinct_singular_values() -> None:
    U, V = (torch.linalg.qr(random_matrix(n, 30, seed=n)).Q for n in (70, 50))
    A = Counted((U * torch.tensor([1.0, 3, 7], dtype=torch.float64).repeat(10)) @ V.mT)
    found = lsmr(A, random_matrix(1, 70), 1e-10, 100)
    assert found.iterations <= 4 and found.norm == pytest.approx(7, rel=0.2)
    assert sum(A.blocks) <= 1 + 2 * found.iterations + 2


def test_condition_number() -> None:
    values = torch.logspace(0, 2, 40, dtype=torch.float64)
    U, V = (torch.linalg.qr(random_matrix(n, 40, seed=n)).Q for n in (70, 50))
    found = lsmr(Counted((U * values) @ V.mT), random_matrix(1, 70), 1e-10, 1000)
    assert found.condition is not None and 30 < found.condition < 110  # the paper's estimate is rough


def test_zero_tiny_and_orthogonal_right_hand_sides() -> None:
    M = torch.zeros(6, 4, dtype=torch.float64)
    M[:4] = random_matrix(4, 4)
    B = random_matrix(3, 6, seed=1)
    B[0], B[1, :4] = 0, 0  # B[1] is orthogonal to the range
    B[2] *= 1e-200
    found = lsmr(Counted(M), B, 1e-10, 100)
    assert float(found.value[:2].abs().max()) == 0 and not found.trouble
    torch.testing.assert_close(found.value[2] * 1e200, torch.linalg.pinv(M) @ (B[2] * 1e200), rtol=1e-8, atol=1e-8)


def test_consistent_asks_for_the_residual_itself() -> None:
    M, b = of_rank(7, 30, 20, torch.float64), random_matrix(1, 30, seed=4)
    assert not lsmr(Counted(M), b, 1e-8, 500).trouble
    found = lsmr(Counted(M), b, 1e-8, 500, consistent=True)
    assert "not in its range" in found.trouble and found.iterations < 100
    torch.testing.assert_close(found.value, damped(M, b, 0.0), rtol=1e-5, atol=1e-5)
    reached = lsmr(Counted(M), b @ torch.linalg.pinv(M).mT @ M.mT, 1e-8, 500, consistent=True)
    assert not reached.trouble


def test_float32_stops_at_what_the_dtype_allows() -> None:
    M = random_matrix(60, 25).float()
    B = random_matrix(2, 60, seed=2).float()
    found = lsmr(Counted(M), B, 1e-4, 500)
    torch.testing.assert_close(found.value.double(), damped(M.double(), B.double(), 0.0), rtol=1e-3, atol=1e-3)
    beyond = lsmr(Counted(M), B, 1e-12, 2000)
    assert "rounding errors" in beyond.trouble and beyond.iterations < 500
    torch.testing.assert_close(beyond.value.double(), damped(M.double(), B.double(), 0.0), rtol=1e-3, atol=1e-4)


def test_a_wrong_transpose_is_refused() -> None:
    class Wrong(Counted):
        def transpose(self) -> LinearOperator:
            return Counted(self.matrix.mT + 0.1, self.out_space, self.in_space)

    with pytest.raises(StructureError, match=r"(?s)adjoint.*<u, A v>.*transpose"):
        lsmr(Wrong(random_matrix(30, 20)), random_matrix(1, 30, seed=1), 1e-8, 100)


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_the_estimates_of_the_recursion_are_right_so_that_the_truth_is_looked_at_once(shape: tuple[int, int]) -> None:
    A, b = Counted(random_matrix(*shape)), random_matrix(1, shape[0], seed=2)
    for damping in (0.0, 2.5):
        A.calls.clear()
        found = lsmr(A, b, 1e-10, 500, damping=damping)
        assert A.calls["mm"] == 1 + 2 * found.iterations + 2


def test_the_estimate_of_the_residual() -> None:
    M, b = random_matrix(60, 25), random_matrix(1, 60, seed=2)
    state, seen = _State(Counted(M), b / b.norm(), 1e-14, 0.0, False), []
    settle = state._settle
    state._settle = lambda residual, normal: (seen.append((float(residual), float(normal))), settle(residual, normal))[1]
    for _ in range(15):
        state.step()
        r = state.b - state.x @ M.mT
        assert seen[-1] == pytest.approx((float(r.norm()), float((r @ M).norm())), rel=1e-9)
