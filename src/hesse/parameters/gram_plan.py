"""Which parts of a Gram matrix are computed, and in which order: pairs of tiles, few captures, nothing twice."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

from hesse.core.errors import StructureError

Side = Literal["rows", "columns"]
Key = tuple[Side, int, int]
"""A tile: of the rows or of the columns, from a sample to a sample."""


class Task(NamedTuple):
    """A part of a Gram matrix that is computed at once.

    Attributes:
        rows, columns: which samples.
    """

    rows: slice
    columns: slice


@dataclass(frozen=True)
class GramPlan:
    """A Gram matrix in tasks; nothing but these numbers decides which they are and what comes out of each.

    A tile is a run of consecutive batches of at most `tile` samples together (of a larger batch: a part). Tiles are captured
    when a task needs them, and as many as `held` are kept for the tasks after it; the order keeps recaptures few. With all
    tiles held every sample is captured once; with h of T tiles held, a symmetric matrix takes about ``T² / 2 h`` captures of a
    tile.

    Attributes:
        sizes: samples of every batch of the rows.
        others: the same for the columns; None: the matrix of the rows with themselves, of which the lower triangle is computed.
        tile: samples of a tile, at most.
        held: tiles that are kept at a time, besides the one in hand.
        captured: samples that are captured at once, where a tile is captured in pieces; None: a tile.
    """

    sizes: tuple[int, ...]
    others: tuple[int, ...] | None = None
    tile: int = 1024
    held: int = 2
    captured: int | None = None

    def __post_init__(self) -> None:
        if self.tile < 1 or self.held < 1 or (self.captured is not None and self.captured < 1):
            raise StructureError(
                "GramPlan(sizes, tile=, held=, captured=) takes tiles and pieces of some samples, and holds some tiles.",
                f"tile={self.tile}, held={self.held}, captured={self.captured}",
                "pass tile >= 1, held >= 1, and captured >= 1 or None",
            )

    @property
    def facts(self) -> dict[str, int | None]:
        """The numbers that decide the tasks besides the batches, for the header of a file."""
        return {"tile": self.tile, "held": self.held, "captured": self.captured}

    def begun(self, facts: Mapping[str, Any]) -> GramPlan:
        """The plan of a file that was begun, by what its header says; this one where the header says nothing of it."""
        if not {"tile", "held"} <= set(facts):
            return self
        return replace(self, tile=facts["tile"], held=facts["held"], captured=facts.get("captured"))

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks, in the order in which they are best done."""
        rows = tiles_of(self.sizes, self.tile)
        if self.others is None:
            return tuple(
                Task(rows[i], rows[j])
                for first in range(0, len(rows), self.held)
                for i in range(first, len(rows))
                for j in range(first, min(i + 1, first + self.held))
            )
        columns = tiles_of(self.others, self.tile)
        return tuple(
            Task(row, column)
            for first in range(0, len(columns), self.held)
            for row in rows
            for column in columns[first : first + self.held]
        )

    @property
    def captures(self) -> int:
        """Samples captured in all, some several times, if all tasks are done in order."""
        return sum(key[2] - key[1] for step in self.schedule(self.tasks) for key in step.fetch)

    def schedule(self, tasks: Sequence[Task]) -> Iterator[Step]:
        """The tasks with the tiles to be captured before, and to be dropped after each of them.

        Args:
            tasks: some of the plan's tasks, in any order. What is needed again last is dropped first (Belady 1966).
        """
        needs = [list(dict.fromkeys(self._keys(task))) for task in tasks]
        uses: dict[Key, list[int]] = {}
        for number in reversed(range(len(tasks))):
            for key in needs[number]:
                uses.setdefault(key, []).append(number)
        here: set[Key] = set()
        for number, task in enumerate(tasks):
            fetch = [key for key in needs[number] if key not in here]
            before: list[Key] = []
            while len(here) + len(fetch) > max(self.held + 1, len(needs[number])):
                idle = [key for key in here if key not in needs[number]]
                last = max(idle, key=lambda key: uses[key][-1])
                here.discard(last)
                before.append(last)
            here.update(fetch)
            for key in needs[number]:
                uses[key].pop()
            after = [key for key in needs[number] if not uses[key]]
            here.difference_update(after)
            yield Step(task, tuple(self._keys(task)), tuple(before), tuple(fetch), tuple(after))

    def _keys(self, task: Task) -> list[Key]:
        other: Side = "rows" if self.others is None else "columns"
        return [("rows", task.rows.start, task.rows.stop), (other, task.columns.start, task.columns.stop)]


class Step(NamedTuple):
    """A task, and what happens to the tiles.

    Attributes:
        task: the task.
        keys: its two tiles.
        before: tiles to drop before it.
        fetch: tiles to capture for it.
        after: tiles that no later task needs.
    """

    task: Task
    keys: tuple[Key, ...]
    before: tuple[Key, ...]
    fetch: tuple[Key, ...]
    after: tuple[Key, ...]


def tiles_of(sizes: Sequence[int], most: int) -> list[slice]:
    """Runs of whole batches of at most so many samples; a larger batch in parts of about the same size."""
    found: list[slice] = []
    start = stop = 0
    for size in sizes:
        if stop > start and stop - start + size > most:
            found.append(slice(start, stop))
            start = stop
        stop += size
        if stop - start > most:
            count = -(-size // most)
            cuts = [start + size * part // count for part in range(count + 1)]
            found += [slice(first, last) for first, last in itertools.pairwise(cuts)]
            start = stop
    if stop > start:
        found.append(slice(start, stop))
    return found
