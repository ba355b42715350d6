"""`pinv` of convolutions by its public question."""

from __future__ import annotations

import pytest
import torch

import hesse.convolutions.questions  # noqa: F401
from hesse.linalg.dense import dense
from hesse.linalg.pinv import pinv
from hesse.operators import BlockDiagonal
from tests.convolutions.dense_oracle import CASES, Case


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_form_of_the_operator(case: Case) -> None:
    weight = case.weight()
    A, M = case.operator(weight), case.matrix(weight)
    forms = [(A, M), (A.T, M.mT), (A.H, M.mH), (-2 * A, -2 * M), ((3 * A).T, 3 * M.mT)]
    for operator, matrix in forms:
        inverse = pinv(operator)
        assert inverse.in_space == operator.out_space and inverse.out_space == operator.in_space
        expected = torch.linalg.pinv(matrix)
        assert torch.allclose(dense(inverse), expected, rtol=1e-9, atol=1e-10)
        assert torch.allclose(dense(inverse.H), expected.mH, rtol=1e-9, atol=1e-10)
        assert inverse.rank == int(torch.linalg.matrix_rank(matrix))
        assert inverse.truncated == min(matrix.shape) - inverse.rank


def test_within_blocks_the_cut_off_is_that_of_the_whole() -> None:
    case = Case("decaying", (1, 1, 3), (1, 8), {"padding": 1})
    weight = torch.tensor([[[0.3, 1.0, 0.5]]], dtype=torch.float64)
    A = case.operator(weight)
    B = BlockDiagonal({"large": 100 * A, "small": A})
    M = dense(B)
    for rtol in (1e-3, 0.05):
        assert torch.allclose(dense(pinv(B, rtol=rtol)), torch.linalg.pinv(M, rtol=rtol), atol=1e-12)
