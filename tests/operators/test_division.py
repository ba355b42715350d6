"""How passes over data divide a memory budget among what is kept, what is in hand, and what is asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.core.errors import MemoryBudgetError
from hesse.core.memory import given_budget, memory
from hesse.operators import Average, Dense, LinearOperator
from hesse.operators.division import Division

MIB = 2**20
CPU = torch.device("cpu")
LIST = [(torch.full((n, 2), float(n)), torch.ones(n)) for n in (3, 1, 4)]


def make(batch: tuple[Tensor, Tensor]) -> LinearOperator:
    A: Any = Dense(batch[0][0, 0] * torch.tensor([[1.0, 2.0], [0.0, 3.0], [5.0, 1.0]]))
    A.mass, A.held_bytes = float(len(batch[0])), 1000
    return A


def test_kept_and_the_largest_operator_fit_together() -> None:
    division = Division(1000 * MIB)
    assert division.may_keep(500 * MIB)
    assert not division.may_keep(501 * MIB)
    division.peak = 600 * MIB
    assert division.may_keep(300 * MIB)
    assert not division.may_keep(301 * MIB)
    division.peak = 2000 * MIB
    assert not division.may_keep(0)


def test_a_question_is_asked_within_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = [100 * MIB]
    monkeypatch.setattr("hesse.operators.division.taken_bytes", lambda device: taken[0])
    division = Division(1000 * MIB)
    ground = division.ground()
    for more, room in ((0, 900), (300, 600), (650, 250), (2000, 250), (-50, 900)):
        taken[0] = (100 + more) * MIB
        assert division.ask(lambda: given_budget(None, CPU), ground, 0) == room * MIB
    division.held = 40 * MIB
    taken[0] = 140 * MIB
    assert division.ground() == 100 * MIB
    division.base = 70 * MIB
    assert division.ground() == 70 * MIB
    assert given_budget(None, CPU) is None
    assert Division(None).ground() is None
    assert Division(None).ask(lambda: given_budget(None, CPU), None, 0) is None


def test_the_least_counts_what_is_held_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = [0]
    monkeypatch.setattr("hesse.operators.division.taken_bytes", lambda device: taken[0])
    division = Division(1000 * MIB)
    ground = division.ground()
    taken[0] = 300 * MIB

    def question() -> None:
        raise MemoryBudgetError("a product", "too little", "more", 700 * MIB)

    with pytest.raises(MemoryBudgetError) as caught:
        division.ask(question, ground, 0)
    assert caught.value.least == 1100 * MIB
    assert given_budget(None, CPU) is None


def test_kept_operators_give_way_to_a_question_that_does_not_fit() -> None:
    asked: list[bool] = []
    A = Average(make, LIST, memory=1000 * MIB)
    A.mv(torch.ones(2))
    assert "3 of 3 batches kept" in repr(A)

    def question(operator: LinearOperator) -> Tensor:
        asked.append("kept" in repr(A))
        if len(asked) == 2:
            raise MemoryBudgetError("a product", "too little", "more", 700 * MIB)
        return operator.flat @ torch.ones(2)

    found = A.combine(question)
    assert asked == [True, True, False, False, False]
    mean = sum(n * n * torch.tensor([3.0, 3.0, 6.0]) for n in (3, 1, 4)) / 8
    torch.testing.assert_close(found, mean)
    with pytest.raises(MemoryBudgetError):
        A.combine(lambda operator: (_ for _ in ()).throw(MemoryBudgetError("a product", "too little", "more", 700 * MIB)))


def test_vectors_and_products_are_left_alone() -> None:
    A, v = Average(make, LIST), torch.ones(2)
    with memory(1000 * MIB):
        first = A @ v
        second = A @ v
    assert torch.equal(first, second)
    assert torch.equal(v, torch.ones(2))
    x = torch.ones(2, requires_grad=True)
    (A @ x).sum().backward()
    torch.testing.assert_close(x.grad, (A.T @ torch.ones(3)))
