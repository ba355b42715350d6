"""`solve` and `lstsq` with convolutions, against the matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hesse.convolutions.questions  # noqa: F401
from hesse.core.errors import NotConvergedError
from hesse.linalg import lstsq, solve
from hesse.operators import LinearOperator
from tests.convolutions.dense_oracle import CASES, Case

SQUARE = [case for case in CASES if case.name in ("square", "circular", "dilated", "complex square")]
BOX = Case("box", (1, 1, 3, 3), (1, 5, 8), {"padding": 1})


def right_hand_sides(A: LinearOperator, dtype: torch.dtype) -> Tensor:
    shape = A.out_space.shapes[0]
    return torch.randn(2, 3, *shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def pairs(case: Case) -> list[tuple[LinearOperator, Tensor]]:
    """An operator and its transpose, with their matrices."""
    weight = case.weight()
    A, M = case.operator(weight), case.matrix(weight)
    return [(A, M), (A.T, M.mT)]


def test_as_exact_as_rounding_allows() -> None:
    """Of a condition number of 3e12, x is so long that the rounding of the products is above 1e-8 of the right-hand side."""
    case = Case("long", (3, 3, 3), (3, 160), {"padding": 1}, torch.complex128)
    A, M = case.operator(case.weight(3)), case.matrix(case.weight(3))
    b = torch.randn(2, 3, 160, dtype=case.dtype, generator=torch.Generator().manual_seed(2))
    for operator, matrix in ((A, M), (A.T, M.mT), (A.H, M.mH)):
        for question in (solve, lstsq):
            found = question(operator, b, full=True)
            x = found.value.flatten(1)
            missed = torch.linalg.vector_norm(b.flatten(1) - x @ matrix.mT, dim=1)
            scale = torch.linalg.matrix_norm(matrix, 2) * torch.linalg.vector_norm(x, dim=1)
            assert found.residual > 1e-8
            assert float((missed / scale).max()) <= 32 * torch.finfo(torch.float64).eps


@pytest.mark.parametrize("case", SQUARE, ids=str)
def test_solve(case: Case) -> None:
    for A, M in pairs(case):
        b = right_hand_sides(A, case.dtype)
        found = solve(A, b, full=True)
        exact = torch.linalg.solve(M, b.flatten(2)[..., None])[..., 0].reshape(2, 3, *A.in_space.shapes[0])
        condition = float(torch.linalg.cond(M))
        assert float((found.value - exact).norm()) <= 100 * condition * 2.3e-16 * float(exact.norm())
        assert found.method in ("dense", "circular")
        assert found.truncated == 0
        assert abs(found.condition - condition) <= 1e-6 * condition
        assert float((found.value - exact).flatten(2).norm(dim=-1).max()) <= found.forward_error * float(exact.norm())
        assert found.forward_error <= 1e-9


@pytest.mark.parametrize("case", CASES, ids=str)
def test_lstsq(case: Case) -> None:
    for A, M in pairs(case):
        b = right_hand_sides(A, case.dtype)
        found = lstsq(A, b, full=True)
        exact = (b.flatten(2) @ torch.linalg.pinv(M).mT).reshape(2, 3, *A.in_space.shapes[0])
        off = (found.value - exact).flatten(2).norm(dim=-1) / exact.flatten(2).norm(dim=-1)
        assert float(off.max()) <= 1e-10
        assert float(off.max()) <= found.forward_error <= 1e-7
        values = torch.linalg.svdvals(M)
        values = values[values > 1e-12 * values[0]]
        assert abs(found.condition - float(values[0] / values[-1])) <= 1e-6 * found.condition
        assert found.truncated == min(M.shape) - len(values)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_adjoint(case: Case) -> None:
    A, M = case.operator(case.weight()).H, case.matrix(case.weight()).mH
    b = right_hand_sides(A, case.dtype)
    exact = (b.flatten(2) @ torch.linalg.pinv(M).mT).reshape(2, 3, *A.in_space.shapes[0])
    assert torch.allclose(lstsq(A, b), exact, rtol=1e-9, atol=1e-10)
    if M.shape[0] == M.shape[1]:
        assert torch.allclose(solve(A, b), exact, rtol=1e-9, atol=1e-10)


def test_a_singular_one_is_not_solved() -> None:
    A = BOX.operator(torch.ones(1, 1, 3, 3, dtype=torch.float64))
    M = BOX.matrix(torch.ones(1, 1, 3, 3, dtype=torch.float64))
    nullity = 40 - int(torch.linalg.matrix_rank(M))
    assert nullity == 12
    b = right_hand_sides(A, torch.float64)
    for operator in (A, A.T):
        with pytest.raises(NotConvergedError, match=rf"null space of dimension {nullity}(?s:.*)hesse\.pinv\(A\)"):
            solve(operator, b)
        with pytest.raises(NotConvergedError, match=rf"null space of dimension {nullity}"):
            solve(operator, operator @ b)  # which has solutions, but not one
    found = lstsq(A, b, full=True)
    exact = (b.flatten(2) @ torch.linalg.pinv(M, rtol=1e-10).mT).reshape(found.value.shape)
    assert float((found.value - exact).norm()) <= 1e-12 * float(exact.norm())
    assert found.truncated == nullity


@pytest.mark.parametrize("name", ["square", "tall", "wide", "complex tall"])
def test_damping(name: str) -> None:
    (case,) = [case for case in CASES if case.name == name]
    for A, M in pairs(case):
        b = right_hand_sides(A, case.dtype)
        eye = torch.eye(M.shape[1], dtype=M.dtype)
        exact = torch.linalg.solve(M.mH @ M + 0.3 * eye, M.mH @ b.flatten(2)[..., None])[..., 0]
        found = lstsq(A, b, damping=0.3, rtol=1e-12)
        assert float((found.flatten(2) - exact).norm()) <= 1e-9 * float(exact.norm())


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "case",
    [
        Case("square", (2, 2, 3, 3), (2, 24, 23), {"padding": 1}),
        Case("wide", (2, 3, 3, 3), (3, 24, 23), {"padding": 1, "padding_mode": "reflect"}),
    ],
    ids=str,
)
def test_larger_ones(case: Case) -> None:
    weight = case.weight(3)
    A, M = case.operator(weight), case.matrix(weight)
    b = right_hand_sides(A, case.dtype)
    found = lstsq(A, b, full=True)
    exact = (b.flatten(2) @ torch.linalg.pinv(M).mT).reshape(found.value.shape)
    values = torch.linalg.svdvals(M)
    condition = float(values[0] / values[-1])
    assert abs(found.condition - condition) <= 0.02 * condition
    error = float((found.value - exact).flatten(2).norm(dim=-1).max() / exact.flatten(2).norm(dim=-1).min())
    assert error <= 100 * condition * 2.3e-16
    assert found.forward_error >= error / 2 - condition * 1e-15  # the matrix's answer is off by as much
    assert found.method == "boundary"


def test_empty_batches() -> None:
    A = CASES[1].operator(CASES[1].weight())
    assert lstsq(A, torch.zeros(0, *A.out_space.shapes[0], dtype=torch.float64)).shape == (0, *A.in_space.shapes[0])
