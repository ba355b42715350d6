"""A search for few colors: the best coloring so far, and whether to go on."""

from __future__ import annotations

import time

from hesse.sparse.compressed import Indices


class Search:
    """Keeps the coloring with the fewest colors; the clock starts with the first one.

    Args:
        fewest: colors that no coloring can do without, at which the search ends.
        seconds: after which nothing new is tried.
    """

    def __init__(self, fewest: int, seconds: float) -> None:
        self.fewest, self.seconds = fewest, seconds
        self.count, self.name = -1, ""
        self._sides: tuple[Indices, ...] = ()
        self._until = float("inf")

    def offer(self, name: str, *sides: Indices) -> None:
        """Keep a coloring, of one side or of columns and rows, if it has fewer colors than the best one."""
        count = sum(int(colors.max(initial=-1)) + 1 for colors in sides)
        if not self._sides:
            self._until = time.monotonic() + self.seconds
        if not self._sides or count < self.count:
            self.count, self.name, self._sides = count, name, sides

    @property
    def colors(self) -> Indices:
        """Of the best one; for colorings of both sides those of the columns."""
        return self._sides[0]

    @property
    def row_colors(self) -> Indices:
        """Of the best one, for colorings of both sides."""
        return self._sides[1]

    @property
    def until(self) -> float:
        """The end, by `time.monotonic`."""
        return self._until

    def goes_on(self, seconds: float = 0.0) -> bool:
        """Whether fewer colors are possible and something that takes so many seconds may be tried; the first thing always."""
        return not self._sides or (self.count > self.fewest and time.monotonic() + seconds < self._until)
