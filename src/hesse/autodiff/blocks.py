"""Many products at once: rows by reverse mode, columns by forward mode, in chunks that fit the memory budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hesse.autodiff.fused import differentiable_attention
from hesse.autodiff.recording import Recording
from hesse.core.batching import slices
from hesse.core.memory import Budget, chunk_size, current_budget

_COPIES = 4  # of what the graph produced, for each vector of a batched pass: cotangents, their sums, the graph, the results
_CACHE_BYTES = 2**26  # a batched pass gains nothing once its cotangents are far out of cache


def pull_block(recording: Recording, cotangents: Sequence[Tensor | None]) -> list[Tensor]:
    """`Recording.pull` for all cotangents along the leading axis: in one batched pass, or one by one where an op's backward
    cannot be batched."""
    try:
        return recording.pull(cotangents, batched=True)
    except RuntimeError:
        if recording.functorch:
            raise
    count = next(u.shape[0] for u in cotangents if u is not None)
    rows = [recording.pull([None if u is None else u[k] for u in cotangents]) for k in range(count)]
    return [torch.stack(parts) for parts in zip(*rows, strict=True)]


def push_block(recording: Recording, tangents: list[Tensor]) -> list[Tensor]:
    """``J v`` for all tangents along the leading axis, by forward mode under `vmap`.

    Raises:
        RuntimeError: an op has no forward mode, or the function cannot be batched (`.item()`, branches on data).
    """

    def one(*parts: Tensor) -> tuple[Tensor, ...]:
        run = torch.func.jvp(lambda *xs: tuple(recording.outputs_at(xs)), primals, parts)
        return tuple(run[1])

    follow = recording.follows(tangents)
    primals = tuple(recording.inputs) if recording.attached else tuple(leaf.detach() for leaf in recording.inputs)
    with differentiable_attention(), torch.set_grad_enabled(follow):
        return list(torch.func.vmap(one)(*tangents))


def chunk_for(recording: Recording, total: int, result_bytes: int, memory: Budget | None, what: str) -> int:
    """How many vectors share a pass: as many as fit the budget beside the result, and no more than stay near the cache."""
    if recording.functorch:
        return max(total, 1)
    graph = max(recording.graph_bytes(), 1)
    budget = current_budget(memory, recording.in_space.device)
    most = chunk_size(total, graph, result_bytes, budget, what)
    return min(most, max((budget - result_bytes) // (_COPIES * graph), 1), max(_CACHE_BYTES // graph, 1))


def unit_rows(leaf: Tensor, rows: slice) -> Tensor:
    """Unit vectors ``[k, *shape]`` for the given flat positions of a leaf."""
    count = rows.stop - rows.start
    block = torch.zeros(count, leaf.numel(), dtype=leaf.dtype, device=leaf.device)
    block.diagonal(rows.start).fill_(1)
    return block.reshape(count, *leaf.shape)


def joined(pieces: list[list[Tensor]], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Results of consecutive blocks, joined leaf by leaf; ``[0, *shape]`` where there was no block."""
    if not pieces:
        return [leaf.new_zeros(0, *leaf.shape) for leaf in leaves]
    return [torch.cat(group) for group in zip(*pieces, strict=True)]


def unit_blocks(leaves: list[Tensor], chunk: int, label: str) -> Iterator[tuple[int, slice, list[Tensor]]]:
    """Every unit vector of a space in blocks: ``(leaf index, flat positions, one tensor a leaf)``, zero in other leaves."""
    for index, leaf in enumerate(leaves):
        for rows in slices(leaf.numel(), chunk, label):
            count = rows.stop - rows.start
            yield (
                index,
                rows,
                [
                    unit_rows(leaf, rows) if i == index else other.new_zeros(count, *other.shape)
                    for i, other in enumerate(leaves)
                ],
            )
