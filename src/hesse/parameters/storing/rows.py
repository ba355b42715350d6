"""Rows of a Jacobian, as they are or projected, written to a folder of chunks."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.core.chunk_store import ChunkStore, Mode
from hesse.core.chunk_store_layout import DEFAULT_CHUNK_BYTES, ArrayLayout, balanced, choose_chunks
from hesse.core.chunk_store_writer import ArrayWriter
from hesse.core.memory import current_budget, parse_bytes
from hesse.core.progress import track
from hesse.operators.projections import RandomProjection
from hesse.parameters.base import JacobianBySample
from hesse.parameters.projecting import require_projection
from hesse.parameters.storing.budget import begun_facts, rows_steps
from hesse.parameters.storing.identity import Json, describe_operator, identity_of
from hesse.parameters.storing.probe import require_same_bits
from hesse.parameters.storing.spaces import space_to_json

ROWS, PROJECTED = "rows", "projected rows"
_MOST_BANDS = 10_000  # rows of chunks, where their size allows


@dataclass(frozen=True)
class RowsPart:
    """What a stored Jacobian is, before anything is computed.

    Attributes:
        kind: "rows" or "projected rows".
        layout: its shape, dtype and chunks; ``layout.nbytes`` is the exact size on disk.
        identity: what has to be the same when writing goes on (see `identity_of`).
        facts: what the reader needs, and how samples are taken together.
    """

    kind: str
    layout: ArrayLayout
    identity: dict[str, Json]
    facts: dict[str, Json]


def rows_layout(
    J: JacobianBySample, projection: RandomProjection | None = None, chunk_bytes: int | str = DEFAULT_CHUNK_BYTES
) -> ArrayLayout:
    """The shape, dtype and chunk grid of the stored rows; see `JacobianBySample.zarr_layout`."""
    if projection is not None:
        require_projection(J, projection)
    space = J.in_space if projection is None else projection.out_space
    shape = (*J.out_space.shapes[0], space.dim)
    most, *rest = choose_chunks(shape, space.dtype.itemsize, parse_bytes(chunk_bytes, "chunk_bytes"))
    batch, batches = max(J.sizes), -(-len(J.sizes) // _MOST_BANDS)
    rows = balanced(batch, most) if most <= batch else min(batch * min(most // batch, batches), J.count)
    return ArrayLayout(shape, (rows, *rest), space.dtype)


def rows_part(
    J: JacobianBySample,
    projection: RandomProjection | None = None,
    chunk_bytes: int | str = DEFAULT_CHUNK_BYTES,
    facts: dict[str, Json] | None = None,
) -> RowsPart:
    """What the stored rows are.

    Args:
        J, projection, chunk_bytes: as for `JacobianBySample.to_zarr`.
        facts: of a folder that was begun, which it keeps.

    Cost: one pass over the bytes of the parameters; under a memory budget also that of `rows_steps`.
    """
    layout = rows_layout(J, projection, chunk_bytes)
    space = J.in_space if projection is None else projection.out_space
    if facts is None:
        steps = rows_steps(J, projection, layout)
        facts = {
            "columns": space_to_json(space),
            "of": "output" if J.recipe is not None and J.recipe.loss is None else "loss",
            "mass": J.mass,
            "samples captured at once": steps.captured,
            "rows written at once": steps.written,
            "memory": current_budget(J.memory, J.in_space.device),
        }
    settings = {"projection": None if projection is None else describe_operator(projection)}
    return RowsPart(ROWS if projection is None else PROJECTED, layout, identity_of(J, settings), facts)


def write_rows(
    J: JacobianBySample,
    path: str | os.PathLike[str],
    projection: RandomProjection | None,
    *,
    mode: Mode,
    chunk_bytes: int | str = DEFAULT_CHUNK_BYTES,
) -> None:
    """Write the rows to a folder; see `JacobianBySample.to_zarr`."""
    ChunkStore.require_new(path, mode)
    part = rows_part(J, projection, chunk_bytes, begun_facts(path, mode))
    store = ChunkStore.create(path, part.kind, {"rows": part.layout}, part.identity, part.facts, mode=mode)
    if not store.complete:
        fill_rows(J, store, "rows", projection=projection)
        store.seal()


def fill_rows(
    J: JacobianBySample, store: ChunkStore, name: str, *, projection: RandomProjection | None = None, rank: int = 0
) -> None:
    """Write what is missing of an array of rows.

    Args:
        J: the Jacobian, with as many samples as the array has rows.
        store: the folder.
        name: of the array.
        projection: what the rows go through.
        rank: of the writer, where several fill the folder.

    Raises:
        DataError: what is there differs in a bit from what is computed now. StoreError: the disk is full, or another writer of
            this rank is at work.
    """
    rows = _Rows(J, projection, store.facts)
    with store.writer(name, rank=rank) as writer:
        if len(writer.missing) < store.arrays[name].count:
            _probe(rows, store, name, writer)
        total = sum(writer.needs([part]) for part in rows.cuts())
        pieces = rows.pieces(lambda part: writer.needs([part]))
        for part, values in track(pieces, f"{store.kind} to '{store.path.name}'", total):
            writer.add((part.start,), values)


class _Rows:
    """The rows of a Jacobian in pieces that depend on nothing but the header."""

    def __init__(self, J: JacobianBySample, projection: RandomProjection | None, facts: dict[str, Any]) -> None:
        self.J, self.projection = J, projection
        self.step, self.at_once = facts["rows written at once"], facts["samples captured at once"]
        self.memory = facts["memory"]

    def cuts(self) -> Iterator[slice]:
        """All pieces: blocks of samples, cut at every multiple of the rows that are written at once."""
        stop = 0
        for size in self.J.sizes:
            start, stop = stop, stop + size
            at_once = self.at_once or size
            for first in range(start, stop, at_once):
                yield from _cut(slice(first, min(first + at_once, stop)), self.step)

    def pieces(self, wanted: Callable[[slice], bool]) -> Generator[tuple[slice, Tensor], None, None]:
        """The samples and the rows ``[n, ..., columns]`` of every wanted piece; valid until the next one is asked for."""
        buffer: Tensor | None = None

        def skip(block: slice) -> bool:
            return not any(wanted(part) for part in _cut(block, self.step))

        for place, block in self.J.blocks(skip, at_once=self.at_once or max(self.J.sizes)):
            for part in filter(wanted, _cut(place, self.step)):
                chosen = block.select(slice(part.start - place.start, part.stop - place.start))
                chosen.memory = self.memory
                if self.projection is not None:
                    yield part, chosen.project(self.projection)
                    continue
                if buffer is None:
                    shape = (min(self.step, self.J.count), *chosen.facts.shape[1:], self.J.in_space.dim)
                    buffer = torch.empty(shape, dtype=self.J.in_space.dtype, device=self.J.in_space.device)
                yield part, chosen.dense(out=buffer[: part.stop - part.start])


def _cut(block: slice, step: int) -> Iterator[slice]:
    bounds = [block.start, *range((block.start // step + 1) * step, block.stop, step), block.stop]
    return (slice(a, b) for a, b in itertools.pairwise(bounds))


def _probe(rows: _Rows, store: ChunkStore, name: str, writer: ArrayWriter) -> None:
    """Compute the first stored piece again, and compare it."""
    found: list[slice] = []

    def first(part: slice) -> bool:
        if not found and not writer.needs([part]):
            found.append(part)
        return found == [part]

    with closing(rows.pieces(first)) as pieces:
        for part, values in pieces:
            require_same_bits(store, name, (part.start,), values)
            return
