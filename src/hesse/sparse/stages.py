"""What the stages of a sparse derivative take at most, and the refusal of a budget before the stage that would pass it."""

from __future__ import annotations

from dataclasses import dataclass

from hesse.autodiff.dependence.bound import Bound
from hesse.autodiff.room import Room
from hesse.sparse.colored import ColoredPattern
from hesse.sparse.detect import after_pattern
from hesse.sparse.entries import FEW
from hesse.sparse.pattern import Pattern

_LINE = 24  # bytes of a row or column, while a pattern is colored
_COLORED, _COLORED_SYMMETRIC = 40, 60  # bytes of an entry then
_READ = 64  # bytes of an entry, while values are read from products and checked
_PRODUCTS = 24  # bytes of an element of products and their seeds, with a copy of the former
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
    """

    room: Room
    symmetric: bool
    graph: int
    entry: int
    fixed: int
    reused: bool = False

    @property
    def bound(self) -> Bound:
        """Of the run that finds the pattern."""
        return Bound(self.room, lambda entries, rows, columns: (
            after_pattern(entries, rows, columns) + self._coloring(entries, rows, columns)
            + self._values(entries, rows, columns, _guess(entries, rows, columns)) + self._result(entries)))  # fmt: skip

    def require_coloring(self, pattern: Pattern) -> None:
        """Refuse a budget that the coloring would pass, or the result.

        Raises:
            MemoryBudgetError: with what all stages take.
        """
        if self.room.given is None:
            return
        rows, columns = pattern.shape
        coloring = self._coloring(pattern.nnz, rows, columns)
        if self.room.passed(int(coloring)) or self._result(pattern.nnz) > self.room.given:
            rest = self._values(pattern.nnz, rows, columns, _guess(pattern.nnz, rows, columns)) + self._result(pattern.nnz)
            self._refuse(coloring, rest)

    def left(self, pattern: Pattern) -> int | None:
        """Bytes that are left for products, beside what reads them; None without a budget."""
        return self.room.left(_READ * pattern.nnz)

    def require_values(self, colored: ColoredPattern) -> None:
        """Refuse a budget that the products would pass, or the result beside them.

        Raises:
            MemoryBudgetError: with what all stages take.
        """
        if self.room.given is None:
            return
        nnz, (rows, columns) = colored.pattern.nnz, colored.pattern.shape
        values = self._values(nnz, rows, columns, colored.colors)
        if self.room.passed(int(values)):
            self._refuse(values, self._result(nnz))

    def require_result(self, entries: int) -> None:
        """Refuse a budget that the result would pass.

        Raises:
            MemoryBudgetError: with what is taken besides.
        """
        if self.room.given is not None and self.room.passed(self._result(entries)):
            self._refuse(self._result(entries), 0)

    def _refuse(self, now: float, later: float) -> None:
        """Unless giving back what was freed makes room."""
        taken = self.room.taken(settled=True)
        if self.room.passed(int(now)) or self.fixed > (self.room.given or 0):
            what = "a dense result" if self.fixed > (self.room.given or 0) else _WHAT
            raise self.room.refusal(int(taken + now + later), what)

    def _coloring(self, entries: float, rows: int, columns: int) -> float:
        return (_COLORED_SYMMETRIC if self.symmetric else _COLORED) * entries + _LINE * (rows + columns)

    def _values(self, entries: float, rows: int, columns: int, colors: float) -> float:
        at_once = colors if self.reused else min(colors, FEW)
        return _READ * entries + at_once * (_PRODUCTS * max(rows, columns) + (0 if self.reused else self.graph)) + self.graph

    def _result(self, entries: float) -> int:
        return int(self.entry * entries + self.fixed)


def _guess(entries: float, rows: int, columns: int) -> float:
    """How many colors there will be: some more than entries in a row or column."""
    return 4 + 2 * entries / max(1, min(rows, columns))
