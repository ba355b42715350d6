"""The memory budget of a run in which every element is followed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hesse.autodiff.room import Room

WHAT = "the sets of inputs that a sparse pattern is found by"
_MARGIN = 8  # a part of the budget that is left to what nobody counts
_state = threading.local()


@dataclass(frozen=True)
class Bound:
    """What following the elements may take.

    Attributes:
        room: the memory that the call may take.
        least: from entries, rows and columns of the pattern, and the bytes that are taken while it is made, to the bytes that
            would do for all that comes after; None: no error has to say it.
    """

    room: Room
    least: Callable[[float, int, int, float], float] | None = None


@contextmanager
def bounded(room: Room | None) -> Iterator[None]:
    """Within this context sets of this thread keep to the budget."""
    previous = getattr(_state, "room", None)
    _state.room = room
    try:
        yield
    finally:
        _state.room = previous


def is_bounded() -> bool:
    """Whether sets of this thread keep to a budget."""
    return getattr(_state, "room", None) is not None


def require(size: float) -> None:
    """Refuse to go on where the budget is passed, or would be by so many bytes more.

    Raises:
        MemoryBudgetError: it is; the least that it names would do up to here.

    Cost: nothing without a budget; else 10 microseconds.
    """
    room: Room | None = getattr(_state, "room", None)
    if room is not None and room.passed(int(size) + (room.given or 0) // _MARGIN):
        raise room.refusal(room.taken() + int(size), WHAT)
