"""How much it takes to follow every element, from a few of them: counts that are known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.autodiff.dependence.bound import Bound, bounded, is_bounded, require
from hesse.autodiff.dependence.estimate import estimated
from hesse.autodiff.dependence.function import dependence, followed
from hesse.autodiff.room import Room
from hesse.core.errors import MemoryBudgetError

SIZE = 40_000
CASES: dict[str, tuple[Callable[[Tensor], Tensor], int, int]] = {
    "each its own": (torch.sin, SIZE, SIZE),
    "neighbors": (lambda x: x[1:] * x[:-1], 2 * (SIZE - 1), SIZE - 1),
    "blocks": (lambda x: x.view(-1, 20).softmax(1), 20 * SIZE, SIZE),
    "tall": (lambda x: torch.cat([x, x**2, x**3]), 3 * SIZE, 3 * SIZE),
}


@pytest.mark.parametrize("name", CASES)
def test_entries(name: str) -> None:
    f, entries, rows = CASES[name]
    x = torch.rand(SIZE, dtype=torch.float64)

    def run(label: Any, tally: Any) -> Any:
        return followed(f, x, "a test", label, local=True, gradient=False, tally=tally).sets

    size, found, down, across = estimated(run)
    assert (down, across) == (rows, SIZE)
    assert entries <= found <= 1.5 * entries
    assert 4 * entries <= size <= 200 * (entries + rows)


def room(budget: int, monkeypatch: pytest.MonkeyPatch, taken: int) -> Room:
    made = Room(budget, torch.zeros(1))
    monkeypatch.setattr(made, "taken", lambda **_: taken)
    return made


def test_what_is_passed_and_what_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require(1e12)
    given = 100 * 2**20
    with bounded(room(given, monkeypatch, 60 * 2**20)):
        assert is_bounded()
        require(20 * 2**20)
        with pytest.raises(MemoryBudgetError) as caught:
            require(50 * 2**20)
        assert caught.value.least >= 110 * 2**20
    assert not is_bounded()


def test_a_refusal_names_what_comes_after(monkeypatch: pytest.MonkeyPatch) -> None:
    x, runs = torch.rand(SIZE, dtype=torch.float64), []

    def f(x: Tensor) -> Tensor:
        runs.append(1)
        y = x
        for _ in range(40):
            y = y + y.roll(1)
        return y

    refused: list[bool] = []

    def passed(self: Room, more: int = 0) -> bool:
        """At the third op of a first run, and never after it."""
        refused.append(len(refused) == 3)
        return refused[-1]

    monkeypatch.setattr(Room, "passed", passed)
    monkeypatch.setattr(Room, "taken", lambda self, **_: 0)
    named = []
    for each in (0, 1000):  # bytes an entry of what comes after

        def would_do(entries: float, rows: int, columns: int, taken: float, each: int = each) -> float:
            return taken + each * entries

        runs.clear()
        refused.clear()
        with pytest.raises(MemoryBudgetError) as caught:
            dependence(f, x, "a test", local=True, bound=Bound(Room(2**20, x), would_do))
        assert len(runs) == 2
        named.append(caught.value.least)
    true = 41 * SIZE
    assert 0.5 * 1000 * true < named[1] - named[0] < 2 * 1000 * true
    runs.clear()
    refused.clear()
    with pytest.raises(MemoryBudgetError):
        dependence(f, x, "a test", local=True, bound=Bound(Room(2**20, x)))
    assert len(runs) == 1
    assert dependence(f, x, "a test", local=True, bound=Bound(Room(named[1], x))).matrix.nnz == true
