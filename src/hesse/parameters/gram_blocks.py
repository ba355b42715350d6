"""Gram matrices of Jacobians, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from hesse.core import pages
from hesse.core.errors import StructureError
from hesse.core.memory import chunk_size, current_budget
from hesse.core.progress import track
from hesse.parameters.base import JacobianBySample, require_same_parameters
from hesse.parameters.gram_budget import plan_gram
from hesse.parameters.gram_hand import Failing, Hand
from hesse.parameters.gram_plan import GramPlan, Task
from hesse.parameters.writing import target_of


class Block(NamedTuple):
    """A part of a Gram matrix or tangent kernel.

    Attributes:
        rows, columns: which samples of the first and of the second data set.
        values: ``[n, m]``, for outputs ``[n, C, m, C]``.
    """

    rows: slice
    columns: slice
    values: Tensor


def gram_blocks(
    first: JacobianBySample,
    second: JacobianBySample,
    plan: GramPlan,
    tasks: Sequence[Task] | None = None,
    failing: Failing = "halve",
) -> Iterator[Block]:
    """The blocks of some tasks of a plan; see `JacobianBySample.gram_blocks` and, for `failing`, `Hand`."""
    require_same_parameters(first, second)
    _require_plan(first, second, plan)
    chosen = plan.tasks if tasks is None else tuple(tasks)
    hand = Hand(first, second, plan, failing)
    for step in track(plan.schedule(chosen), "Gram matrix", len(chosen)):
        yield Block(*step.task, hand.values(step))
        hand.drop(step.after)


def _require_plan(first: JacobianBySample, second: JacobianBySample, plan: GramPlan) -> None:
    wanted = (first.sizes, None if second is first else second.sizes)
    if (plan.sizes, plan.others) != wanted:
        raise StructureError(
            "A plan of a Gram matrix is made for the batches of its Jacobians.",
            f"a plan for batches of {plan.sizes} and {plan.others}, Jacobians of {wanted[0]} and {wanted[1]} samples",
            "make it by J.gram_plan(other), or GramPlan(J.sizes, other.sizes, ...)",
        )


def write_gram(first: JacobianBySample, second: JacobianBySample, out: Any = None) -> Any:
    """The whole Gram matrix, ``[N, M]`` or ``[N, C, M, C]``.

    Args:
        first, second: the Jacobians; the same one for a symmetric matrix.
        out: a tensor or a NumPy array to write to, of any real dtype.

    Raises:
        StructureError: `out` has another shape. MemoryBudgetError: no room for the result.
    """
    shape = (*first.out_space.shapes[0], *second.out_space.shapes[0])
    device, taken = first.out_space.device, 0
    if out is None:
        taken = first.shape[0] * second.shape[0] * first.out_space.dtype.itemsize
        budget = current_budget(first.memory, device)
        chunk_size(1, taken, 0, budget, f"a Gram matrix of {first.shape[0]} x {second.shape[0]} (out= takes a file)")
    target = None if out is None else require_target(out, shape)
    plan = plan_gram(first, second, taken)
    if target is None:
        target = out = pages.empty(shape, first.out_space.dtype, device)
    axis = len(first.out_space.shapes[0])
    for block in gram_blocks(first, second, plan):
        place(target, block, axis, both=second is first)
    return out


def require_target(out: Any, shape: tuple[int, ...]) -> Tensor:
    """The memory that a Gram matrix is written to.

    Raises:
        StructureError: no tensor or array, of another shape, of integers, read-only, or one that no tensor can stand for.
    """
    return target_of(out, shape, None, None, "gram")


def place(target: Tensor, block: Block, axis: int, *, both: bool) -> None:
    """Write a block into a matrix whose columns begin at `axis`, and (of a symmetric one) its mirror image."""
    target[block.rows].narrow(axis, block.columns.start, block.columns.stop - block.columns.start).copy_(block.values)
    if both and block.rows != block.columns:
        swapped = (*range(axis, block.values.ndim), *range(axis))
        mirror = target[block.columns].narrow(axis, block.rows.start, block.rows.stop - block.rows.start)
        mirror.copy_(block.values.permute(swapped))
