"""What the stages of a sparse derivative take at most, and the refusal of a budget before the stage that would pass it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

from hesse.autodiff.dependence.bound import Bound
from hesse.autodiff.room import Room
from hesse.sparse.colored import ColoredPattern
from hesse.sparse.detect import after_pattern
from hesse.sparse.pattern import Pattern

_LINE = 24  # bytes of a row or column, while a pattern is colored
_COLORED, _COLORED_SYMMETRIC = 48, 80  # bytes of an entry then
_PATTERN = 12  # bytes of an entry that a pattern keeps
_PLACES, _PLACES_SYMMETRIC = 36, 48  # that its colors keep, with the places of entries in products
_READ = 64  # while values are read from products and checked
_VALUE = 8  # that its value keeps
_PRODUCT = 16  # bytes of an element of a product and of its seed, with a copy of the former
_WHAT = "a sparse derivative"


@dataclass(frozen=True)
class Stages:
    """The stages after a function has run.

    Attributes:
        room: the memory that the call may take.
        symmetric: whether the derivative is a Hessian.
        graph: bytes of what the graph that is differentiated produced.
        entry, fixed: bytes of the result for an entry, and at any rate.
        reused: whether more derivatives will follow, for which all seeds are kept.
        before: bytes that were taken before the pattern was looked for.
    """

    room: Room
    symmetric: bool
    graph: int
    entry: int
    fixed: int
    reused: bool = False
    before: int = 0

    @property
    def bound(self) -> Bound:
        """Of the run that finds the pattern."""
        return Bound(self.room, lambda entries, rows, columns, taken: max(
            taken + after_pattern(entries, rows, columns),
            self._least(entries, rows, columns, _guess(entries, rows, columns))))  # fmt: skip

    def require_coloring(self, pattern: Pattern) -> None:
        """Refuse a budget that the coloring would pass, or the result.

        Raises:
            MemoryBudgetError: with what all stages take.
        """
        size = pattern.nnz, *pattern.shape
        self._require(self._coloring(*size), lambda: self._least(*size, _guess(*size)))

    def left(self, pattern: Pattern) -> int | None:
        """Bytes that are left for products, beside what reads them; None without a budget."""
        return self.room.left(_READ * pattern.nnz)

    def require_values(self, colored: ColoredPattern) -> None:
        """Refuse a budget that the products would pass, or the result beside them.

        Raises:
            MemoryBudgetError: with what all stages take.
        """
        size = colored.pattern.nnz, *colored.pattern.shape
        self._require(self._values(*size, colored.colors), lambda: self._least(*size, colored.colors))

    def require_result(self, entries: int) -> None:
        """Refuse a budget that the result would pass.

        Raises:
            MemoryBudgetError: with what is taken besides.
        """
        self._require(self._result(entries), lambda: 0.0)

    def _require(self, now: float, least: Callable[[], float]) -> None:
        """Refuse a budget that so many bytes more would pass, unless giving back what was freed makes room."""
        if self.room.given is None or not (self.room.passed(int(now)) or self.fixed > self.room.given):
            return
        gc.collect()  # graphs and sets that were followed are in cycles
        taken = self.room.taken(settled=True)
        if self.room.passed(int(now)) or self.fixed > self.room.given:
            what = "a dense result" if self.fixed > self.room.given else _WHAT
            raise self.room.refusal(int(max(least(), taken + now)), what)

    def _least(self, entries: float, rows: int, columns: int, colors: float) -> float:
        """What the stages after the pattern take at most, each beside what those before it keep."""
        colored = _PATTERN + (_PLACES_SYMMETRIC if self.symmetric else _PLACES)
        return self.before + max(
            _PATTERN * entries + self._coloring(entries, rows, columns),
            colored * entries + self._values(entries, rows, columns, colors),
            (colored + _VALUE) * entries + self._result(entries),
        )

    def _coloring(self, entries: float, rows: int, columns: int) -> float:
        return (_COLORED_SYMMETRIC if self.symmetric else _COLORED) * entries + _LINE * (rows + columns)

    def _values(self, entries: float, rows: int, columns: int, colors: float) -> float:
        at_once = colors if self.reused else 1
        return _READ * entries + at_once * (_PRODUCT * (rows + columns) + self.graph) + self.graph

    def _result(self, entries: float) -> int:
        return int(self.entry * entries + self.fixed)


def _guess(entries: float, rows: int, columns: int) -> float:
    """How many colors there will be: some more than entries in a row or column."""
    return 4 + 2 * entries / max(1, min(rows, columns))
