"""The memory that a call may take, and what it has taken since it began."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hesse.core import tree
from hesse.core.errors import MemoryBudgetError
from hesse.core.growth import settle, taken_bytes
from hesse.core.memory import Budget, given_budget, too_small

_NOISE = 2**20  # bytes that no measurement tells
_LEAST = 2**22  # bytes: what is taken is not held against budgets below it


class Room:
    """The memory budget of a call that begins now.

    Args:
        memory: as the user gave it; None: that in force.
        x: the point, which says on which device.

    Attributes:
        given: its bytes; None where there is none, so that nothing is measured.
    """

    def __init__(self, memory: Budget | None, x: Any) -> None:
        self.given = given_budget(memory)
        self._device = torch.device("cpu")
        if self.given is not None:
            self._device = next((leaf.device for leaf in tree.leaves(x) if isinstance(leaf, Tensor)), self._device)
            self.given = given_budget(memory, self._device)
        self._start = self._taken()

    def _taken(self) -> int:
        return taken_bytes(self._device) if self.given is not None and self._device.type in ("cpu", "cuda") else 0

    def taken(self, *, settled: bool = False) -> int:
        """Bytes that were taken since the call began; 0 without a budget.

        Args:
            settled: give back what was freed before.
        """
        if settled and self.given is not None and self._device.type == "cpu":
            settle()
        return max(self._taken() - self._start, 0)

    def held(self, most: int) -> int:
        """Bytes taken so far for what takes `most` bytes if all of it is fresh memory; 0 without a budget."""
        if self.given is None:
            return 0
        return min(self.taken(), most) if most > _NOISE else most

    def skip(self, before: int) -> None:
        """Do not count what was taken since `taken()` was `before`: modules that were loaded once and for all."""
        self._start += self.taken() - before

    def passed(self, more: int = 0) -> bool:
        """Whether the budget is passed by what was taken, or will be by so many bytes more; never without a budget."""
        return self.given is not None and self.taken() + more > max(self.given, _LEAST)

    def left(self, besides: int = 0) -> int | None:
        """Bytes of the budget that are left beside some more, at least 1; all of it where it is too small to be measured."""
        if self.given is None or self.given < _LEAST:
            return self.given
        return max(self.given - self.taken() - besides, 1)

    def refusal(self, least: int, what: str) -> MemoryBudgetError:
        """The error that names `least` bytes, or a little more than the budget where that is not more."""
        given = self.given or 0
        return too_small(given, max(least, given + given // 8 + 1), what)
