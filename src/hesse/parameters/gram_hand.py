"""The tiles of a Gram matrix that are at hand, and the blocks that they give; less at a time where memory fails."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from hesse.core.batching import slices
from hesse.core.chunked import is_allocation_failure
from hesse.core.growth import settle, taken_bytes
from hesse.core.memory import current_budget, given_budget, too_small
from hesse.parameters.base import JacobianBySample
from hesse.parameters.gram_plan import GramPlan, Key, Side, Step, Task
from hesse.parameters.jacobian import ParameterJacobian
from hesse.parameters.tile import Tile, held_tile

Failing = Literal["halve", "raise"]
Grid = dict[tuple[int, int], Tensor]
_LEFT = 0.05  # of the budget: growth after which memory that is free is given back


def values_of(rows: Tile, columns: Tile) -> Tensor:
    """``[n, m]`` (``[n, C, m, C]``): the inner products of the rows of two tiles; of one with itself, halves are mirrors."""
    axis = len(rows[0].out_space.shapes[0])
    if rows is columns:
        grid = {(i, j): J.inner(None if i == j else rows[j]) for i, J in enumerate(rows) for j in range(i + 1)}
        return _joined(_mirrored(grid, axis), axis)
    return _joined({(i, j): J.inner(K) for i, J in enumerate(rows) for j, K in enumerate(columns)}, axis)


def _mirrored(grid: Grid, axis: int) -> Grid:
    """The blocks of one triangle, and of the other."""
    order = (*range(axis, 2 * axis), *range(axis))
    return grid | {(j, i): block.permute(order) for (i, j), block in grid.items() if i != j}


def _joined(grid: Grid, axis: int) -> Tensor:
    """One block put together from those by place."""
    if len(grid) == 1:
        return next(iter(grid.values()))
    rows, columns = (max(places) + 1 for places in zip(*grid, strict=True))
    return torch.cat([torch.cat([grid[i, j] for j in range(columns)], axis) for i in range(rows)])


def in_pieces(
    fetch: Callable[[slice], Tile], part: slice, captured: int | None, before: Callable[[], None] = lambda: None
) -> Iterator[ParameterJacobian]:
    """The Jacobians of a range of samples, so many at a time; none is held here while the next ones are captured.

    Args:
        fetch: what captures a range of samples.
        part: the range.
        captured: samples of a piece, at most, which are about the same in all pieces; None: all of them.
        before: is called before every piece.
    """
    count = part.stop - part.start
    for piece in slices(count, -(-count // -(-count // (captured or count)))):
        before()
        found = fetch(slice(part.start + piece.start, part.start + piece.stop))[::-1]
        while found:
            yield found.pop()


class Hand:
    """Captures tiles when a task needs them, and makes the blocks.

    Args:
        first, second: the Jacobians; the same one for a symmetric matrix.
        plan: which tiles there are, and of how many samples together they are captured.
        failing: what is done where an allocation fails though all other tiles were let go: "halve" captures half as many
            samples at a time, from then on; "raise" keeps to the tiles, and with them to the bits.
    """

    def __init__(self, first: JacobianBySample, second: JacobianBySample, plan: GramPlan, failing: Failing) -> None:
        self.first, self.second, self.plan, self.failing = first, second, plan, failing
        fetch = first.tiles()
        self._fetch: dict[Side, Callable[[slice], Tile]] = {
            "rows": fetch, "columns": fetch if second is first else second.tiles(),
        }  # fmt: skip
        self._tiles: dict[Key, Tile] = {}
        self._ceiling: int | None = None
        given = given_budget(first.memory, first.in_space.device)
        self._watched = None if given is None or first.in_space.device.type != "cpu" else int(_LEFT * given)
        self._level = 0
        self._settle()

    def drop(self, keys: Sequence[Key]) -> None:
        """Let tiles go."""
        for key in keys:
            self._tiles.pop(key, None)

    def values(self, step: Step) -> Tensor:
        """The block of a step of a plan.

        Raises:
            MemoryBudgetError: an allocation failed, and less cannot be done at a time.
        """
        self.drop(step.before)
        found, failure = self._attempt(step.task, step.keys)
        if found is None and self._tiles:
            self._tiles.clear()
            found, failure = self._attempt(step.task, step.keys)
        if found is not None:
            return found
        self._tiles.clear()
        if self.failing == "raise":
            raise self._refusal(step.task) from failure
        return self._halved(step.task, failure)

    def _attempt(self, task: Task, keys: Sequence[Key]) -> tuple[Tensor | None, Exception | None]:
        """The block, unless so large tiles have failed before, or fail now."""
        if self._ceiling is not None and max(_length(part) for part in task) > self._ceiling:
            return None, None
        try:
            for key in keys:
                if key not in self._tiles:
                    self._tiles[key] = self._captured(*key)
            return values_of(*(self._tiles[key] for key in keys)), None
        except (MemoryError, RuntimeError) as error:
            if not is_allocation_failure(error):
                raise
            return None, error.with_traceback(None)  # whose frames hold what was allocated

    def _captured(self, side: Side, start: int, stop: int) -> Tile:
        """A tile, captured in pieces; what is captured at once and used once stays as it is."""
        pieces = in_pieces(self._fetch[side], slice(start, stop), self.plan.captured, self._settle)
        once = self.plan.captured is None and len(self.plan.tasks) == 1
        return list(pieces) if once else held_tile(pieces, stop - start)

    def _settle(self) -> None:
        """Give back what is free, where the process has grown since."""
        if self._watched is not None and taken_bytes(self.first.in_space.device) > self._level + self._watched:
            settle()
            self._level = taken_bytes(self.first.in_space.device)

    def _halved(self, task: Task, failure: Exception | None) -> Tensor:
        """A block put together from those of half as many rows and columns; of a symmetric one the upper ones are mirrors."""
        longest = max(_length(part) for part in task)
        if longest == 1:
            raise self._refusal(task) from failure
        if failure is not None:
            self._ceiling = (longest + 1) // 2
        same = self.second is self.first and task.rows == task.columns
        halves = [_halves(part) for part in task]
        grid: Grid = {}
        for (i, rows), (j, columns) in itertools.product(*map(enumerate, halves)):
            if same and i < j:
                continue
            grid[i, j] = self._part(Task(rows, columns))
        axis = len(self.first.out_space.shapes[0])
        return _joined(_mirrored(grid, axis) if same else grid, axis)

    def _part(self, task: Task) -> Tensor:
        other: Side = "rows" if self.second is self.first else "columns"
        keys: tuple[Key, ...] = (("rows", task.rows.start, task.rows.stop), (other, task.columns.start, task.columns.stop))
        found, failure = self._attempt(task, keys)
        self._tiles.clear()
        return self._halved(task, failure) if found is None else found

    def _refusal(self, task: Task) -> Exception:
        budget = current_budget(self.first.memory, self.first.in_space.device)
        counts = " x ".join(str(_length(part)) for part in task)
        return too_small(budget, budget + 1, f"a block of {counts} samples of a Gram matrix, for which an allocation failed")


def _length(part: slice) -> int:
    return part.stop - part.start


def _halves(part: slice) -> list[slice]:
    middle = (part.start + part.stop + 1) // 2
    return [half for half in (slice(part.start, middle), slice(middle, part.stop)) if half.stop > half.start]
