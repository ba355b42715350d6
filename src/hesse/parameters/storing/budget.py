"""How much is worked on at a time while a folder is written, decided before its header: what chunks hold back counts, too."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hesse.core.chunk_store import ChunkStore, Mode
from hesse.core.chunk_store_layout import ArrayLayout, Index
from hesse.core.memory import chunk_size, current_budget, given_budget, too_small
from hesse.operators.projections import RandomProjection
from hesse.parameters.appetite import DOUBT, NOISE, PAIR, PEAK, SURE, least_for, measured
from hesse.parameters.base import JacobianBySample
from hesse.parameters.gram_budget import plan_gram
from hesse.parameters.gram_plan import GramPlan

_TRIES = 4
_BESIDE = 5 * NOISE  # of the part that is planned with: runs near the least took up to 1.26 times the budget with 2
_SHARE = 0.5  # of a budget, by measurement: captures, rows and what waits; freed memory is not always used again


def begun_facts(path: str | os.PathLike[str], mode: Mode) -> dict[str, Any] | None:
    """What the header of a folder says that is gone on with; None where one is begun."""
    there = mode == "resume" and os.path.exists(os.path.join(path, "zarr.json"))
    return ChunkStore.open(path).facts if there else None


def stored_plan(J: JacobianBySample, other: JacobianBySample | None, layout: Callable[[GramPlan], ArrayLayout]) -> GramPlan:
    """The plan of a Gram matrix that fits the memory budget beside the chunks that wait for their rest.

    Args:
        J, other: the Jacobians; None for the matrix of `J` with itself.
        layout: the chunk grid for a plan.

    Raises:
        MemoryBudgetError: two samples, or these chunks, do not fit.

    Cost: as `plan_gram`, again where chunks are not divided by tiles.
    """
    second = J if other is None else other
    given, waiting = given_budget(J.memory, J.in_space.device), 0
    for _ in range(_TRIES):
        plan = plan_gram(J, second, waiting)
        found = 0 if given is None else waiting_bytes(plan, layout(plan))
        if found <= waiting + NOISE:
            return plan
        waiting = found
    assert given is not None
    raise too_small(given, given + waiting, "a Gram matrix whose chunks wait for later batches")


def waiting_bytes(plan: GramPlan, layout: ArrayLayout) -> int:
    """Bytes of the chunks that have some of their numbers but not all, at the most, while a plan's tasks are done in order."""
    axis, both = len(layout.shape) // 2, plan.others is None
    inner = [[slice(0, 1)] * (axis - 1)] * 2
    left: dict[Index, int] = {}
    most = 0
    for task in plan.tasks:
        regions = [task] if not both or task.rows == task.columns else [task, (task.columns, task.rows)]
        for rows, columns in regions:
            for index in layout.touched([rows, *inner[0], columns, *inner[1]]):
                extent = layout.extent(index)
                places = ((extent[0], rows), (extent[axis], columns))
                size = math.prod(place.stop - place.start for place, _ in places)
                part = math.prod(min(place.stop, s.stop) - max(place.start, s.start) for place, s in places)
                rest = left.pop(index, size) - part
                if rest:
                    left[index] = rest
        most = max(most, len(left))
    return most * layout.file_bytes


@dataclass(frozen=True)
class RowsSteps:
    """How rows are taken together.

    Attributes:
        captured: samples that are captured at once; None: batches as they are.
        written: rows that are written at once.
    """

    captured: int | None
    written: int


def rows_steps(J: JacobianBySample, projection: RandomProjection | None, layout: ArrayLayout) -> RowsSteps:
    """How many samples are captured, and how many rows are written at once.

    Args:
        J: the Jacobian.
        projection: what the rows go through.
        layout: of the stored rows.

    Raises:
        MemoryBudgetError: the rows of a chunk, or two samples, do not fit; `least` says what would do.

    Cost: nothing without a budget, or where all is far below it; else the work on about 20 samples.
    """
    budget, given = current_budget(J.memory, J.in_space.device), given_budget(J.memory, J.in_space.device)
    row = J.out_space.dim // J.count * J.in_space.dim * J.in_space.dtype.itemsize
    step, what = layout.chunks[0], f"{layout.chunks[0]} rows of {J.in_space.dim} numbers"
    if projection is None:
        chunk_size(1, row * step, 0, budget, what)
    if J.recipe is not None and not J.recipe.asked.keep:  # every time that some are written is a backward pass
        step *= max(int(budget / (2 if given is None else 4) // (row * step)), 1)
    step = min(step, J.count)
    if given is None:
        return RowsSteps(J.samples_at_once, step)
    fixed = (row * step if projection is None else 0) + _waiting_rows(J, layout)
    return RowsSteps(_captured(J, projection, step, given, fixed, what), step)


def _waiting_rows(J: JacobianBySample, layout: ArrayLayout) -> int:
    """Bytes of the chunk that is written, and of a row of chunks where batches end inside of one."""
    step, at_once = layout.chunks[0], J.samples_at_once
    inside = any(end % step for end in list(itertools.accumulate(J.sizes))[:-1]) or (at_once is not None and at_once % step)
    return layout.file_bytes * (1 + (math.prod(layout.grid[1:]) if inside else 0))


def _captured(
    J: JacobianBySample, projection: RandomProjection | None, step: int, budget: int, fixed: int, what: str
) -> int | None:
    most = max(J.sizes)
    records = PEAK * J.bytes_per_sample * most
    if DOUBT * records + fixed <= SURE * budget or records + fixed <= NOISE:
        return J.samples_at_once
    if fixed > _SHARE * budget:
        raise too_small(budget, int(fixed / _SHARE) + 4 * NOISE, what)
    tile = J.tiles()

    def work(count: int) -> list[torch.Tensor]:
        found = []
        for block in tile(slice(0, count)):
            some = block.select(slice(0, min(step, block.count)))
            some.memory = budget
            found.append(some.dense() if projection is None else some.project(projection))
        return found

    appetite = measured(work, most, budget, J.in_space.device, what, fixed)
    room = _SHARE * budget - fixed - _BESIDE
    if appetite.of(most) <= room:
        return None
    fits = appetite.fits(room)
    if not fits:
        raise too_small(budget, int((fixed + _BESIDE + least_for(appetite.of(PAIR))) / _SHARE), what)
    return fits
