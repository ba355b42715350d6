"""Ranks and null spaces of convolutions, against those of the matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hesse.convolutions.questions.inverses import inverse_of
from hesse.convolutions.questions.rank import null_rows
from hesse.core.errors import MemoryBudgetError
from hesse.linalg import null_space_rule, rank_rule
from hesse.linalg.null_space import null_space
from hesse.linalg.rank import rank
from tests.convolutions.dense_oracle import CASES, Case

BOX = torch.ones(1, 1, 3, dtype=torch.float64)
LARGE = Case("box", (1, 1, 3), (1, 1013), {"padding": 1})  # singular, since 1014 is divisible by 3


def repeated(case: Case) -> Tensor:
    """A weight whose last filter is twice its first."""
    weight = case.weight()
    weight[-1] = 2 * weight[0]
    return weight


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rank_and_null_space_of_small_ones(case: Case) -> None:
    for weight in (case.weight(), repeated(case)):
        A, M = case.operator(weight), case.matrix(weight)
        expected = int(torch.linalg.matrix_rank(M))
        assert rank(A) == rank(A.T) == rank(A.H) == expected
        for operator, matrix in ((A, M), (A.T, M.mT)):
            rows = operator.in_space.ravel(null_space(operator), 1)
            assert len(rows) == matrix.shape[1] - expected
            assert torch.allclose(rows @ rows.mH, torch.eye(len(rows), dtype=rows.dtype), atol=1e-12)
            assert float((matrix @ rows.mT).norm()) <= 1e-12 * float(matrix.norm())


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("adjoint", [False, True])
def test_null_vectors_by_projection(case: Case, adjoint: bool) -> None:
    weight = repeated(case)
    M = case.matrix(weight)
    inverse = inverse_of(case.operator(weight))
    matrix = M.mH if adjoint else M
    count = matrix.shape[1] - int(torch.linalg.matrix_rank(M))
    rows = null_rows(inverse, count, adjoint=adjoint)
    assert rows.shape == (count, matrix.shape[1])
    assert torch.allclose(rows @ rows.mH, torch.eye(count, dtype=rows.dtype), atol=1e-12)
    assert float((matrix @ rows.mT).norm()) <= 1e-12 * float(matrix.norm())


def test_a_large_singular_one() -> None:
    A, M = LARGE.operator(BOX), LARGE.matrix(BOX)
    values = torch.linalg.svdvals(M)
    expected = int((values > 1e-10 * values[0]).sum())
    assert expected == 1012
    found = rank_rule(A, None, None)
    assert found == expected
    assert found.gap > 1e6
    rows = null_space_rule(A, None, None)
    assert len(rows) == 1013 - expected
    assert float((M @ rows.mT).norm()) <= 1e-11 * float(M.norm())
    assert torch.allclose(rows @ rows.mT, torch.eye(len(rows), dtype=rows.dtype), atol=1e-12)
    rows = null_space_rule(A.T, None, None)
    assert float((M.mT @ rows.mT).norm()) <= 1e-11 * float(M.norm())


def test_null_vectors_of_a_transpose() -> None:
    case = Case("boxes", (1, 3, 3), (3, 341), {"padding": 1})
    weight = torch.ones(1, 3, 3, dtype=torch.float64) * torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)[:, None]
    rows = null_space_rule(case.operator(weight).T, None, None)
    assert rows.shape == (1, 341)
    assert float((case.matrix(weight).mT @ rows.mT).norm()) <= 1e-11


def test_a_cut_off_is_meant_as_by_torch() -> None:
    case = Case("decaying", (1, 1, 3), (1, 12), {"padding": 1})
    weight = torch.tensor([[[0.3, 1.0, 0.5]]], dtype=torch.float64)
    values = torch.linalg.svdvals(case.matrix(weight))
    for place in (3, 8):
        rtol = float((values[place] + values[place + 1]) / 2 / values[0])
        found = rank(case.operator(weight), rtol=rtol)
        assert found == place + 1 == int(torch.linalg.matrix_rank(case.matrix(weight), rtol=rtol))
        assert abs(found.gap - float(values[place] / values[place + 1])) <= 1e-9


def test_too_many_null_vectors_for_the_memory() -> None:
    A = LARGE.operator(BOX)
    with pytest.raises(MemoryBudgetError, match="null vectors"):
        null_rows(inverse_of(A), 2, memory=10_000)
