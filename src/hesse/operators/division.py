"""How a pass over data divides the memory budget: among operators that are kept, the one in hand, and what is asked of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from hesse.core.errors import MemoryBudgetError
from hesse.core.growth import settle, taken_bytes
from hesse.core.memory import Budget, current_budget, format_bytes, given_budget, memory

Result = TypeVar("Result")

_KEPT = 0.5  # of the budget, at most, for operators that are kept; the products need the rest
_MEASURED = 0.4  # the same of what is measured, which is known only after it was taken
_PLANNED = 0.9  # of the budget: all that is planned together
_LEFT = 0.1  # of the budget: what may be left behind unused before it is given back
_LEAST = 0.25  # of the budget: what a question about one operator may take, whatever the rest takes
_NOISE = 2**23  # bytes: in budgets below, measurements show what else the process does


class Division:
    """The parts of a memory budget, of which nothing is measured where the user set none.

    Args:
        budget: bytes, fraction, text, or None for the one in force.

    Attributes:
        device: where the operators are.
        peak: bytes that the largest operator takes while it is made and multiplied, as far as it is known.
        held: bytes of the operators that are kept for the next passes.
        now: bytes of the operators that are kept so far in this pass.
        base: bytes taken before anything was made, for the first pass, which counts what libraries took meanwhile; None later.
    """

    def __init__(self, budget: Budget | None) -> None:
        self.budget, self.device = budget, torch.device("cpu")
        self.peak = self.held = self.now = 0
        self.base: int | None = None

    def may_keep(self, wanted: int) -> bool:
        """Whether operators of so many bytes may be kept beside the largest one and its products."""
        return wanted <= self._kept(_KEPT)

    def ground(self) -> int | None:
        """Bytes taken before a pass, without the operators that are kept; None without a budget."""
        if given_budget(self.budget, self.device) is None:
            return None
        now = taken_bytes(self.device) - self.held
        return now if self.base is None else min(now, self.base)

    def is_over(self, ground: int | None) -> bool:
        """Whether more was taken since than may be kept: by a product's graph, or by what the system does not get back."""
        if ground is None or self._bytes() <= _NOISE:
            return False
        most = ground + self.held + self._kept(_MEASURED)
        if taken_bytes(self.device) > most:
            self._give_back(ground + self.now)
        return taken_bytes(self.device) > most

    def ask(self, question: Callable[[], Result], ground: int | None, known: int) -> Result:
        """The answer to a question about the operator in hand, within what is left of the budget.

        Args:
            question: what is asked.
            ground: bytes taken before the pass, see `ground`.
            known: bytes that the operator in hand holds, if it is not among those kept.

        Raises:
            MemoryBudgetError: it does not fit beside what else is held; `least` is for all of it.
        """
        if ground is None:
            return question()
        budget = self._bytes()
        self._give_back(ground + self.now + known)
        room = int(_PLANNED * budget) - max(taken_bytes(self.device) - ground, 0)
        room = max(room, int(_LEAST * budget), 1)
        try:
            with memory(room):
                return question()
        except MemoryBudgetError as error:
            least = error.least + budget - room
            found = f"{error.found or 'too little'}, beside {format_bytes(budget - room)} that is held or kept free"
            raise MemoryBudgetError(error.asked, found, f"pass memory={least} or more", least) from error

    def _give_back(self, used: int) -> None:
        """What was left behind unused goes to the system, if that is much."""
        if self._bytes() > _NOISE and taken_bytes(self.device) - used > _LEFT * self._bytes():
            settle()

    def _bytes(self) -> int:
        return current_budget(self.budget, self.device)

    def _kept(self, share: float) -> float:
        return min(share * self._bytes(), _PLANNED * self._bytes() - self.peak)
