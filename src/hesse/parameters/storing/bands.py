"""The chunks of a stored matrix in bands of rows: what the reader and its operator walk along."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.core.chunk_store import ChunkStore
from hesse.core.chunk_store_layout import Index
from hesse.core.errors import StoreError


@dataclass(frozen=True)
class Band:
    """The rows of one row of chunks.

    Attributes:
        name: of the array.
        number: of the row of chunks.
        rows: which rows of the matrix these are.
        sample: the first row's number among all rows, also among those that are not there.
    """

    name: str
    number: int
    rows: slice
    sample: int


@dataclass(frozen=True)
class Tile:
    """One chunk: its place in the matrix (a slice for each axis), and its numbers."""

    place: tuple[slice, ...]
    values: Tensor


class Bands:
    """A stored matrix, several arrays one below the other, in bands of rows.

    Args:
        store: the folder.
        partial: take the rows that are there; else all have to be.
        device: where the numbers go.

    Raises:
        StoreError: not complete, and not `partial`; or no row is there.
    """

    def __init__(self, store: ChunkStore, partial: bool, device: torch.device) -> None:
        self.store, self.device = store, device
        if not store.complete and not partial:
            raise StoreError(
                f"'{store.path}' is read when all of it is there.",
                f"{_missing(store)} chunks missing, or a writer at work",
                'write the rest with mode="resume", or pass partial=True for the complete rows',
            )
        self.bands, self.total = _bands(store, partial)
        self.count = self.bands[-1].rows.stop if self.bands else 0
        if not self.count:
            raise StoreError(
                f"The rows of '{store.path}' are wanted.", "no complete row", 'write them with mode="resume"'
            )
        self.layout = next(iter(store.arrays.values()))
        self._starts = [band.rows.start for band in self.bands]

    @property
    def samples(self) -> Tensor:
        """The numbers of the rows that are there among all rows, int64 ``[count]``."""
        return torch.cat([torch.arange(b.sample, b.sample + b.rows.stop - b.rows.start) for b in self.bands])

    def tiles(self, bands: Sequence[Band] | None = None, within: Sequence[slice] | None = None) -> Iterator[Tile]:
        """The chunks of some bands, a row of chunks after the other.

        Args:
            bands: by default all.
            within: of the axes after the first, the ranges that are wanted; chunks outside are not read.
        """
        for band in self.bands if bands is None else bands:
            for index in self._indices(band, within):
                extent = self.store.arrays[band.name].extent(index)
                yield Tile((band.rows, *extent[1:]), self.store.read(band.name, index).to(self.device))

    def _indices(self, band: Band, within: Sequence[slice] | None) -> Iterator[Index]:
        layout = self.store.arrays[band.name]
        row = layout.extent((band.number, *(0 for _ in layout.shape[1:])))[0]
        inner = [slice(0, size) for size in layout.shape[1:]] if within is None else within
        return layout.touched([row, *inner])

    def rows(self, index: Tensor, within: Sequence[slice] | None = None) -> Tensor:
        """Some rows, each chunk read once.

        Args:
            index: their numbers, int64 ``[n]``, in any order.
            within: of the other axes, the ranges that are wanted; by default all.
        """
        inner = [slice(0, size) for size in self.layout.shape[1:]] if within is None else list(within)
        shape = (len(index), *(part.stop - part.start for part in inner))
        result = torch.empty(shape, dtype=self.layout.dtype, device=self.device)
        wanted: dict[int, list[int]] = {}
        for place, row in enumerate(index.tolist()):
            wanted.setdefault(bisect.bisect_right(self._starts, row) - 1, []).append(place)
        for number, places in sorted(wanted.items()):
            band = self.bands[number]
            target, source = torch.tensor(places), index[places] - band.rows.start
            for tile in self.tiles([band], inner):
                spans = [(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(tile.place[1:], inner, strict=True)]
                cut = tile.values[(slice(None), *_relative(spans, tile.place[1:]))]
                result[(target.to(self.device), *_relative(spans, inner))] = cut[source.to(self.device)]
        return result


def _relative(spans: Sequence[tuple[int, int]], to: Sequence[slice]) -> tuple[slice, ...]:
    return tuple(slice(low - part.start, high - part.start) for (low, high), part in zip(spans, to, strict=True))


def _missing(store: ChunkStore) -> int:
    return sum(len(store.missing(name)) for name in store.arrays)


def _bands(store: ChunkStore, partial: bool) -> tuple[list[Band], int]:
    """The bands that are there, and the number of all rows."""
    found: list[Band] = []
    stop = sample = 0
    for name, layout in store.arrays.items():
        missing = {index[0] for index in store.missing(name)}
        if missing and not partial:
            raise StoreError(
                f"'{store.path}' is read when all of it is there.",
                f"chunks of '{name}' were removed after it was complete, in row {min(missing)} of chunks",
                "write it again, or pass partial=True for the complete rows",
            )
        bounds = [*range(0, layout.shape[0], layout.chunks[0]), layout.shape[0]]
        for number, (a, b) in enumerate(itertools.pairwise(bounds)):
            if number not in missing:
                found.append(Band(name, number, slice(stop, stop + b - a), sample + a))
                stop += b - a
        sample += layout.shape[0]
    return found, sample
