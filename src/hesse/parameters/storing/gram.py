"""Gram matrices and tangent kernels of whole data sets, written to a folder of chunks, block by block."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import Tensor

from hesse.core.chunk_store import ChunkStore, Mode
from hesse.core.chunk_store_layout import DEFAULT_CHUNK_BYTES, ArrayLayout, balanced
from hesse.core.chunk_store_writer import ArrayWriter
from hesse.core.memory import parse_bytes
from hesse.core.progress import track
from hesse.parameters.base import JacobianBySample
from hesse.parameters.gram_blocks import Block, gram_blocks
from hesse.parameters.gram_plan import GramPlan, Task
from hesse.parameters.storing.budget import begun_facts, stored_plan
from hesse.parameters.storing.identity import Json, identity_of
from hesse.parameters.storing.probe import require_same_bits
from hesse.parameters.storing.spaces import space_to_json

GRAM = "gram"


def gram_layout(
    J: JacobianBySample, other: JacobianBySample | None, plan: GramPlan, chunk_bytes: int | str = DEFAULT_CHUNK_BYTES
) -> ArrayLayout:
    """The shape, dtype and chunk grid of a stored Gram matrix: where batches are even, chunks divide the plan's tasks."""
    second = J if other is None else other
    first_shape, second_shape = tuple(J.out_space.shapes[0]), tuple(second.out_space.shapes[0])
    rows = max(task.rows.stop - task.rows.start for task in plan.tasks)
    columns = max(task.columns.stop - task.columns.start for task in plan.tasks)
    dtype, at_most = J.out_space.dtype, parse_bytes(chunk_bytes, "chunk_bytes")
    inner = dtype.itemsize * (J.out_space.dim // J.count) * (second.out_space.dim // second.count)
    columns = balanced(columns, at_most // (inner * rows)) if inner * rows <= at_most else 1
    rows = balanced(rows, at_most // (inner * columns))
    return ArrayLayout((*first_shape, *second_shape), (rows, *first_shape[1:], columns, *second_shape[1:]), dtype)


def gram_identity(J: JacobianBySample, other: JacobianBySample | None) -> dict[str, Json]:
    """What has to be the same when writing goes on (see `identity_of`).

    Cost: one pass over the bytes of the parameters.
    """
    ours = identity_of(J, {"of": "the Gram matrix"})
    if other is None:
        return ours
    theirs = identity_of(other, {"of": "the Gram matrix"})
    return {**ours, **{f"{name} of the columns": theirs[name] for name in ("data", "settings", "loss")}}


def gram_facts(J: JacobianBySample, other: JacobianBySample | None, plan: GramPlan) -> dict[str, Json]:
    """What the reader needs, and the numbers that decide the tasks besides the batches."""
    second = J if other is None else other
    return {
        "columns": space_to_json(second.out_space),
        "of": "output" if J.recipe is not None and J.recipe.loss is None else "loss",
        "mass": 1.0,
        "symmetric": other is None,
        **plan.facts,
    }


def write_gram(
    J: JacobianBySample,
    path: str | os.PathLike[str],
    other: JacobianBySample | None,
    *,
    mode: Mode,
    chunk_bytes: int | str = DEFAULT_CHUNK_BYTES,
) -> None:
    """Write the Gram matrix to a folder; see `JacobianBySample.gram_to_zarr`."""
    ChunkStore.require_new(path, mode)
    other = None if other is J else other
    identity = gram_identity(J, other)
    facts = begun_facts(path, mode)
    if facts is not None and {"tile", "held"} <= set(facts):
        plan = GramPlan(J.sizes, None if other is None else other.sizes).begun(facts)
    else:
        plan = stored_plan(J, other, lambda plan: gram_layout(J, other, plan, chunk_bytes))
    arrays = {GRAM: gram_layout(J, other, plan, chunk_bytes)}
    store = ChunkStore.create(path, GRAM, arrays, identity, gram_facts(J, other, plan), mode=mode)
    if not store.complete:
        fill_gram(J, other, plan, store, GRAM)
        store.seal()


def fill_gram(
    J: JacobianBySample,
    other: JacobianBySample | None,
    plan: GramPlan,
    store: ChunkStore,
    name: str,
    *,
    tasks: Sequence[Task] | None = None,
    rank: int = 0,
) -> None:
    """Write what is missing of a stored Gram matrix.

    Args:
        J, other: the Jacobians; None for the matrix of `J` with itself.
        plan: the plan that the layout was made for.
        store, name: the array.
        tasks: this writer's share of the plan's tasks; all tasks that touch one chunk belong to one writer.
        rank: of the writer.

    Raises:
        DataError: what is there differs in a bit from what is computed now. StoreError: the disk is full, or another writer of
            this rank is at work. MemoryBudgetError: an allocation failed: smaller tiles would give other bits.
    """
    axis, second = len(J.out_space.shapes[0]), J if other is None else other
    with store.writer(name, rank=rank) as writer:
        every = plan.tasks if tasks is None else tuple(tasks)
        missing = [task for task in every if _needed(writer, task, axis, other is None)]
        there = [task for task in every if not _needed(writer, task, axis, other is None)]
        if there:
            (block,) = gram_blocks(J, second, plan, there[:1], "raise")
            require_same_bits(store, name, _start(block, axis), block.values)
        blocks = gram_blocks(J, second, plan, missing, "raise") if missing else ()
        for block in track(blocks, f"Gram matrix to '{store.path.name}'", len(missing)):
            _add(writer, block, axis, other is None)


def _start(block: Block, axis: int) -> tuple[int, ...]:
    return (block.rows.start, *(0 for _ in range(axis - 1)), block.columns.start)


def _add(writer: ArrayWriter, block: Block, axis: int, symmetric: bool) -> None:
    writer.add(_start(block, axis), block.values)
    if symmetric and block.rows != block.columns:
        values: Tensor = block.values.permute(*range(axis, 2 * axis), *range(axis))
        writer.add(_start(Block(block.columns, block.rows, values), axis), values)


def _needed(writer: ArrayWriter, task: Task, axis: int, symmetric: bool) -> bool:
    inner = [slice(0, size) for size in writer.layout.shape[1:axis]]
    return writer.needs([task.rows, *inner, task.columns]) or (symmetric and writer.needs([task.columns, *inner, task.rows]))
