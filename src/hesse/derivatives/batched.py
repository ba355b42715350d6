"""Jacobians of functions that treat rows independently: one pass serves the same column of every row."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.autodiff.blocks import chunk_for, joined, pull_block, push_block
from hesse.autodiff.independence import batch_size, require_independent_rows
from hesse.autodiff.recording import Recording
from hesse.core.batching import slices
from hesse.core.memory import Budget
from hesse.derivatives.forward import Mode, Table, by_forward_mode


def row_jacobians(recording: Recording, mode: Mode, memory: Budget | None, asked: str) -> Table:
    """``[n, *m, *d]`` for every pair of an output leaf ``[n, *m]`` and an input leaf ``[n, *d]``, after proving independence.

    Cost: min(m, d) passes, and for the proof about log2(n) backward passes, or one run where these hold much.
    """
    size = batch_size(recording, asked)
    m, d = recording.out_space.dim // size, recording.in_space.dim // size
    result = 2 * size * m * d * recording.in_space.dtype.itemsize
    chunk = chunk_for(recording, m + d, result, memory, "a batched Jacobian")
    require_independent_rows(recording, asked, chunk)
    table = None
    if mode == "forward" or (mode == "auto" and d < m):
        table = by_forward_mode(recording, mode, lambda: _forward(recording, size, chunk), _product, asked)
    return _reverse(recording, size, chunk) if table is None else table


def _product(block: Tensor, tangent: Tensor) -> Tensor:
    """``[n, *m]``: each row's Jacobian ``[n, *m, *d]`` times its row of the tangent ``[n, *d]``."""
    out = block.shape[: block.ndim - tangent.ndim + 1]
    size, width = tangent.shape[0], tangent[0].numel()
    return (block.reshape(size, -1, width) @ tangent.reshape(size, width, 1)).reshape(out)


def _reverse(recording: Recording, size: int, chunk: int) -> Table:
    table = []
    for index, output in enumerate(recording.outputs):
        pieces = []
        for columns in slices(output.numel() // size, chunk, "Jacobian rows"):
            only: list[Tensor | None] = [None] * len(recording.outputs)
            only[index] = same_unit_in_every_row(output, columns)
            pieces.append(pull_block(recording, only))
        rows = [g.movedim(0, 1) for g in joined(pieces, recording.inputs)]
        shape = output.shape
        table.append([(g.conj().resolve_conj() if g.is_complex() else g).reshape(shape + g.shape[2:]) for g in rows])
    return table


def _forward(recording: Recording, size: int, chunk: int) -> Table:
    columns: list[list[Tensor]] = []
    for index, leaf in enumerate(recording.inputs):
        pieces = []
        for part in slices(leaf.numel() // size, chunk, "Jacobian columns"):
            unit = same_unit_in_every_row(leaf, part)
            block = [
                unit if i == index else other.new_zeros(unit.shape[0], *other.shape) for i, other in enumerate(recording.inputs)
            ]
            pieces.append(push_block(recording, block))
        columns.append([g.movedim(0, -1) for g in joined(pieces, recording.outputs)])
    return [
        [columns[j][i].reshape(output.shape + leaf.shape[1:]).to(leaf.dtype) for j, leaf in enumerate(recording.inputs)]
        for i, output in enumerate(recording.outputs)
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
