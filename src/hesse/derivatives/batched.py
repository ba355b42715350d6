"""Jacobians of functions that treat rows independently: one pass serves the same column of every row."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.autodiff.blocks import pull_block, push_block
from hesse.autodiff.independence import batch_size, require_independent_rows
from hesse.autodiff.recording import Recording
from hesse.autodiff.room import Room
from hesse.derivatives.forward import Mode, Table, by_forward_mode
from hesse.derivatives.gathered import Gathering

_INDEX = 16  # bytes of a sparse entry's index along an axis, while it is made


def row_jacobians(recording: Recording, mode: Mode, layout: str, room: Room, asked: str) -> Table:
    """``[n, *m, *d]`` for every pair of an output leaf ``[n, *m]`` and an input leaf ``[n, *d]``, after proving independence.

    Args:
        recording: the function.
        mode: "forward" leaves no choice.
        layout: what will be made of the table.
        room: the memory that the call may take.
        asked: what is asked of hesse, for error messages.

    Cost: min(m, d) passes, and for the proof about log2(n) backward passes, or one run where these hold much.
    """
    size = batch_size(recording, asked)
    m, d = recording.out_space.dim // size, recording.in_space.dim // size
    gathering = Gathering(recording, room, "a batched Jacobian", batched_bytes(recording, recording, layout))
    require_independent_rows(recording, asked, gathering.chunk(m + d))
    table = None
    if mode == "forward" or (mode == "auto" and d < m):
        table = by_forward_mode(recording, mode, lambda: _by_columns(gathering, size), _product, asked)
    return by_rows(gathering, size, "Jacobian rows") if table is None else table


def batched_bytes(recording: Recording, source: Recording, layout: str) -> int:
    """Bytes of the blocks ``[n, *m, *d]`` of a derivative, and of what is made of them.

    Args:
        recording: of the function, for the number of rows.
        source: what is differentiated: the same, or the recording of its gradient.
        layout: "batched", "dense" or "sparse".
    """
    size, unit = len(recording.inputs[0]), source.in_space.dtype.itemsize
    entries = source.out_space.dim * source.in_space.dim // max(size, 1)
    if layout == "dense":
        return entries * unit * (1 + size)
    axes = 1 + max(y.ndim for y in source.outputs) + max(leaf.ndim for leaf in source.inputs)
    return entries * (unit + (_INDEX * axes + 2 * unit if layout == "sparse" else 0))


def _product(block: Tensor, tangent: Tensor) -> Tensor:
    """``[n, *m]``: each row's Jacobian ``[n, *m, *d]`` times its row of the tangent ``[n, *d]``."""
    out = block.shape[: block.ndim - tangent.ndim + 1]
    size, width = tangent.shape[0], tangent[0].numel()
    return (block.reshape(size, -1, width) @ tangent.reshape(size, width, 1)).reshape(out)


def by_rows(gathering: Gathering, size: int, label: str) -> Table:
    """The blocks of `size` rows by reverse mode, for every pair of leaves.

    Args:
        gathering: of a function with independent rows, or of the gradient of their sum.
        size: how many rows.
        label: shown as progress.
    """
    inputs, outputs = gathering.recording.inputs, gathering.recording.outputs

    def pulled(index: int, columns: slice) -> list[Tensor]:
        only: list[Tensor | None] = [None] * len(outputs)
        only[index] = same_unit_in_every_row(outputs[index], columns)
        return [g.conj().resolve_conj() if g.is_complex() else g for g in pull_block(gathering.recording, only)]

    def empty(index: int, count: int) -> list[Tensor]:
        return [leaf.new_empty(count, *leaf.shape) for leaf in inputs]

    stacks = gathering.stacks([y.numel() // size for y in outputs], pulled, empty, label)
    return [
        [g.movedim(0, 1).reshape(output.shape + g.shape[2:]) for g in row] for output, row in zip(outputs, stacks, strict=True)
    ]


def _by_columns(gathering: Gathering, size: int) -> Table:
    inputs, outputs = gathering.recording.inputs, gathering.recording.outputs

    def pushed(index: int, columns: slice) -> list[Tensor]:
        unit = same_unit_in_every_row(inputs[index], columns)
        others = [unit if i == index else x.new_zeros(len(unit), *x.shape) for i, x in enumerate(inputs)]
        return push_block(gathering.recording, others)

    def empty(index: int, count: int) -> list[Tensor]:
        return [y.new_empty(count, *y.shape, dtype=inputs[index].dtype) for y in outputs]

    columns = gathering.stacks([leaf.numel() // size for leaf in inputs], pushed, empty, "Jacobian columns")
    return [
        [columns[j][i].movedim(0, -1).reshape(output.shape + leaf.shape[1:]).to(leaf.dtype) for j, leaf in enumerate(inputs)]
        for i, output in enumerate(outputs)
    ]


def same_unit_in_every_row(leaf: Tensor, columns: slice) -> Tensor:
    """``[k, n, *d]``: for each of the given positions, the unit vector of a row, the same in all n rows."""
    count, size = columns.stop - columns.start, leaf.shape[0]
    block = torch.zeros(count, size, leaf.numel() // size, dtype=leaf.dtype, device=leaf.device)
    block.diagonal(columns.start, 0, 2).fill_(1)
    return block.reshape(count, *leaf.shape)


def spread(block: Tensor, out_ndim: int) -> Tensor:
    """Row Jacobians ``[n, *m, *d]`` as a dense Jacobian ``[n, *m, n, *d]`` that is zero between different rows."""
    size = block.shape[0]
    result = block.new_zeros(*block.shape[:out_ndim], size, *block.shape[out_ndim:])
    index = torch.arange(size, device=block.device)
    moved = result.movedim(out_ndim, 1)
    moved[index, index] = block
    return result


def spread_sparse(block: Tensor, out_ndim: int) -> Tensor:
    """As `spread`, as a sparse tensor (COO) that holds the blocks alone."""
    every = unraveled(torch.arange(block.numel(), device=block.device), block.shape)
    places = torch.stack([*every[:out_ndim], every[0], *every[out_ndim:]])
    shape = (*block.shape[:out_ndim], block.shape[0], *block.shape[out_ndim:])
    return torch.sparse_coo_tensor(places, block.flatten(), shape, is_coalesced=True, check_invariants=False)


def unraveled(places: Tensor, shape: torch.Size) -> list[Tensor]:
    """Flat places in a tensor as an index along each axis (`torch.unravel_index` imports the compiler, a second)."""
    indices = []
    for size in reversed(shape):
        indices.append(places % size)
        places = places // size
    return indices[::-1]
