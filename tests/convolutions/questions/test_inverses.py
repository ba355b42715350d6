"""Norms of inverses, and inverses as operators."""

from __future__ import annotations

import pytest
import torch

from hesse.convolutions import ladder
from hesse.convolutions.inverse_norm import condition_of, inverse_norm
from hesse.convolutions.questions.inverses import InverseOperator, inverse_of, ranked_inverse
from hesse.linalg.dense import dense
from tests.convolutions.dense_oracle import CASES, Case


@pytest.mark.parametrize("case", CASES, ids=str)
def test_inverses_as_operators(case: Case) -> None:
    P, expected = InverseOperator(inverse_of(case.operator(case.weight()))), torch.linalg.pinv(case.matrix(case.weight()))
    for operator, matrix in ((P, expected), (P.T, expected.mT), (P.H, expected.mH), (P.T.T, expected)):
        assert torch.allclose(dense(operator), matrix, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("method", ["dense", "krylov", "boundary"])
@pytest.mark.parametrize("name", ["square", "tall", "wide", "complex tall"])
def test_norms_and_condition_numbers(name: str, method: str) -> None:
    (case,) = [case for case in CASES if case.name == name]
    weight = case.weight()
    weight[..., 1] += 2.0
    values = torch.linalg.svdvals(case.matrix(weight))
    found = ladder.inverse(case.operator(weight), method=method)
    assert found.method == method
    assert abs(inverse_norm(found) * float(values[-1]) - 1) <= 2e-3
    assert abs(condition_of(found) * float(values[-1] / values[0]) - 1) <= 1e-2


def test_the_zero_operator() -> None:
    case = CASES[0]
    found = inverse_of(case.operator(torch.zeros_like(case.weight())))
    assert inverse_norm(found) == 0
    assert condition_of(found) == 1


def test_krylov_methods_do_not_count_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("benign", (4, 4, 3), (4, 120), {"padding": 1})
    weight = 0.01 * case.weight()
    for channel in range(4):
        weight[channel, channel, 1] += 1
    A = case.operator(weight)
    monkeypatch.setattr(ladder, "order", lambda *_: ["krylov", "boundary"])
    assert inverse_of(A).method == "krylov"
    assert ranked_inverse(A).method == "boundary"
