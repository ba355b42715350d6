"""Who computes which blocks of a Gram matrix: one plan for all processes, its tasks in even runs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from hesse.core import tree
from hesse.core.chunk_store_layout import ArrayLayout, Index
from hesse.core.errors import StructureError
from hesse.core.fingerprint import sample_hashes
from hesse.distributed.differences import hash_text
from hesse.distributed.link import Link
from hesse.parameters.base import JacobianBySample, require_same_parameters
from hesse.parameters.gram_plan import GramPlan, Task
from hesse.parameters.storing.identity import describe_value

Item = TypeVar("Item")
_TASKS = 4  # for each process, at least: shares of the work are even to a part in so many


@dataclass(frozen=True)
class Shares:
    """A plan, and which of its tasks are whose.

    Attributes:
        plan: the same on all processes.
        tasks: of each process, by rank, in the plan's order.
    """

    plan: GramPlan
    tasks: tuple[tuple[Task, ...], ...]


def require_rows(asked: str, *jacobians: Any) -> None:
    """Refuse what is no Jacobian by sample.

    Raises:
        StructureError: something else.
    """
    for jacobian in jacobians:
        if not isinstance(jacobian, JacobianBySample):
            remedy = "pass what hesse.parameter_jacobian gives"
            raise StructureError(f"{asked}(jacobian) takes a parameter Jacobian.", f"a {type(jacobian).__name__}", remedy)


def agreed_shares(link: Link, first: JacobianBySample, second: JacobianBySample) -> Shares:
    """The shares of a Gram matrix that all processes of a link agree on.

    Each process plans for its own memory; the smallest tiles, the smallest pieces of them and the fewest held ones are taken,
    and tiles small enough that every process gets some tasks.

    Raises:
        DistributedError: other data or parameters on another process. StructureError: Jacobians by other parameters.
    """

    def planned() -> GramPlan:
        require_same_parameters(first, second)
        return first.gram_plan(None if second is first else second)

    link.check_same("A Gram matrix over processes: data and parameters", lambda: _hashes(first, second))
    plans = link.exchange("plan of a Gram matrix", planned)
    captured = min((p.captured for p in plans if p.captured is not None), default=None)
    plan = replace(plans[0], tile=min(p.tile for p in plans), held=min(p.held for p in plans), captured=captured)
    plan = _fine_enough(plan, link.ranks)
    return Shares(plan, even_runs(plan.tasks, [_pairs(task, plan) for task in plan.tasks], link.ranks))


def shares_by_chunk(shares: Shares, layout: ArrayLayout) -> Shares:
    """Shares of the same plan in which all tasks that touch one chunk of a stored matrix are one process's.

    Args:
        shares: the plan, and how many processes there are.
        layout: of the matrix.
    """
    plan, axis = shares.plan, len(layout.shape) // 2
    both = plan.others is None
    parent: dict[Index, Index] = {}

    def root(chunk: Index) -> Index:
        while (above := parent.setdefault(chunk, chunk)) != chunk:
            parent[chunk] = parent[above]
            chunk = parent[chunk]
        return chunk

    def chunks(task: Task) -> list[Index]:
        regions = [(task.rows, task.columns), (task.columns, task.rows)] if both else [(task.rows, task.columns)]
        inner = [[slice(0, size) for size in sizes] for sizes in (layout.shape[1:axis], layout.shape[axis + 1 :])]
        return [chunk for r, c in regions for chunk in layout.touched([r, *inner[0], c, *inner[1]])]

    for task in plan.tasks:
        first, *rest = chunks(task)
        for chunk in rest:
            parent[root(chunk)] = root(first)
    groups: dict[Index, list[Task]] = {}
    for task in plan.tasks:
        groups.setdefault(root(chunks(task)[0]), []).append(task)
    bundles = list(groups.values())
    costs = [sum(_pairs(task, plan) for task in bundle) for bundle in bundles]
    runs = even_runs(bundles, costs, len(shares.tasks))
    return Shares(plan, tuple(tuple(task for bundle in run for task in bundle) for run in runs))


def even_runs(tasks: Sequence[Item], costs: Sequence[int], ranks: int) -> tuple[tuple[Item, ...], ...]:
    """Tasks cut into one run a process, such that each run costs about the same.

    Args:
        tasks: in the order in which they are best done.
        costs: of each of them.
        ranks: how many runs; some are empty where there are fewer tasks.
    """
    total, done = sum(costs), 0
    runs: list[list[Item]] = [[] for _ in range(ranks)]
    for task, cost in zip(tasks, costs, strict=True):
        middle = done + cost / 2
        runs[min(int(middle * ranks / total), ranks - 1)].append(task)
        done += cost
    return tuple(tuple(run) for run in runs)


def _fine_enough(plan: GramPlan, ranks: int) -> GramPlan:
    """The plan, with tiles small enough for some tasks a process; as many samples are held."""
    if ranks == 1:
        return plan
    wanted = math.ceil(math.sqrt((2 if plan.others is None else 1) * _TASKS * ranks))
    most = max(sum(plan.sizes), sum(plan.others or ())) // wanted
    tile = plan.tile
    if tile > most:
        tile = _even_tile(plan.sizes, max(most, 1))
    return replace(plan, tile=tile, held=max(plan.held * plan.tile // tile, 1))


def _even_tile(sizes: Sequence[int], most: int) -> int:
    """At most so many samples, in whole batches of the first one's size or equal parts of it."""
    batch = sizes[0]
    return most // batch * batch if most >= batch else next(n for n in range(most, 0, -1) if batch % n == 0)


def _pairs(task: Task, plan: GramPlan) -> int:
    rows, columns = (part.stop - part.start for part in task)
    return rows * (rows + 1) // 2 if plan.others is None and task.rows == task.columns else rows * columns


def _hashes(first: JacobianBySample, second: JacobianBySample) -> dict[str, int]:
    found = {"rows of the data": _data(first), "columns of the data": _data(second)}
    losses = [None if J.recipe is None else describe_value(J.recipe.loss) for J in (first, second)]
    found["loss"] = hash_text(json.dumps(losses))
    return found | {f"the parameter {name}": _number(leaf) for name, leaf in tree.named_leaves(first.params)}


def _data(jacobian: JacobianBySample) -> int:
    return hash_text(f"{jacobian.sizes} {None if jacobian.hashes is None else _number(jacobian.hashes)}")


def _number(leaf: Any) -> int:
    return hash_text(str(int(sample_hashes(leaf.detach().unsqueeze(0)))))
