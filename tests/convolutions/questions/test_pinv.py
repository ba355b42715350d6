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


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_inverse_of_the_inverse_is_the_operator(case: Case) -> None:
    weight = case.weight()
    A, M = case.operator(weight), case.matrix(weight)
    x = torch.randn(2, *A.in_space.shapes[0], dtype=case.dtype)
    for P, operator, matrix in ((pinv(A), A, M), (pinv(A).T, A.T, M.mT), (pinv(A).H, A.H, M.mH)):
        back = pinv(P)
        rank = int(torch.linalg.matrix_rank(matrix))
        assert torch.allclose(dense(back), matrix, rtol=1e-9, atol=1e-10)
        assert (back.rank, back.truncated) == (rank, min(matrix.shape) - rank)
        values = torch.linalg.svdvals(matrix)[:rank]
        assert back.condition == pytest.approx(float(values[0] / values[-1]), rel=1e-9)
        assert back.largest == pytest.approx(1 / float(values[-1]), rel=1e-9)
        if operator is A and rank == min(matrix.shape):
            assert torch.equal(back @ x, A @ x)


def test_what_was_dropped_stays_dropped() -> None:
    case = Case("decaying", (1, 1, 3), (1, 12), {"padding": 1})
    weight = torch.tensor([[[0.3, 1.0, 0.5]]], dtype=torch.float64)
    U, values, Vh = torch.linalg.svd(case.matrix(weight))
    P = pinv(case.operator(weight), rtol=float((values[4] + values[5]) / 2 / values[0]))
    assert torch.allclose(dense(pinv(P)), (U[:, :5] * values[:5]) @ Vh[:5], atol=1e-12)


def test_of_gram_products() -> None:
    case = Case("large", (2, 2, 3, 3), (2, 24, 23), {"padding": 1})
    A, M = case.operator(case.weight()), case.matrix(case.weight())
    for gram, matrix in ((A.T @ A, M.mT @ M), (A @ A.H, M @ M.mT)):
        P = pinv(gram)
        assert P.method == "boundary"
        y = gram @ torch.randn(2, 24, 23, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        assert float((matrix @ (P @ y).flatten() - y.flatten()).norm()) <= 1e-7 * float(y.norm())
