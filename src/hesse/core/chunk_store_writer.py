"""A writer of one stored array: takes parts of any shape, writes whole chunks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hesse.core.chunk_store_files import checksum, write_file
from hesse.core.chunk_store_layout import ArrayLayout, Index
from hesse.core.chunk_store_seal import record
from hesse.core.errors import StructureError

_BITS = {torch.float64: np.uint64, torch.float32: np.uint32, torch.float16: np.uint16, torch.bfloat16: np.uint16}
_SIGNED = {8: torch.int64, 4: torch.int32, 2: torch.int16}


class ArrayWriter:
    """Writes an array part by part; a chunk goes to the disk once all its numbers are there. Made by `ChunkStore.writer`.

    Args:
        folder: of the array.
        layout: its chunk grid.
        missing: the chunks that are not there yet; all others are left as they are.
        rank: of this writer among those that fill the array together.
    """

    def __init__(self, folder: Path, layout: ArrayLayout, missing: Sequence[Index], rank: int = 0) -> None:
        self.folder, self.layout, self.rank = folder, layout, rank
        self.missing = set(missing)
        self._pending: dict[Index, tuple[np.ndarray, int]] = {}

    def needs(self, region: Sequence[slice]) -> bool:
        """Whether some chunk that holds a part of a region (as many slices as axes, or fewer) is missing."""
        return any(index in self.missing for index in self.layout.touched(self._whole(region)))

    def add(self, start: Sequence[int], values: Tensor) -> None:
        """Take a part of the array.

        Chunks that the part covers are written at once. Others are held, at one chunk's bytes each, until the parts that
        make them whole have come. No number may come twice.

        Args:
            start: the place of its first number; axes that are left out begin at 0.
            values: of the array's dtype, as many axes; on any device.

        Raises:
            StructureError: another dtype, or numbers outside of the array. StoreError: no room on the disk.
        """
        start = (*start, *(0 for _ in range(len(self.layout.shape) - len(start))))
        region = tuple(slice(a, a + n) for a, n in zip(start, values.shape, strict=False))
        inside = len(region) == len(self.layout.shape) == values.ndim
        inside = inside and all(0 <= s.start < s.stop <= size for s, size in zip(region, self.layout.shape, strict=True))
        if not inside or values.dtype != self.layout.dtype:
            raise StructureError(
                f"Parts of {self.layout} are numbers of this dtype within this shape.",
                f"{values.dtype} {list(values.shape)} at {list(start)}",
                "cast them, and check where they begin",
            )
        bits = values.detach().cpu().contiguous().view(_SIGNED[values.dtype.itemsize]).numpy()
        bits = bits.view(_BITS[values.dtype])
        for index in self.layout.touched(region):
            if index in self.missing:
                self._fill(index, region, bits)

    def close(self) -> None:
        """End of the parts.

        Raises:
            StructureError: a chunk got some of its numbers, but not all.
        """
        if self._pending:
            index, (_, left) = next(iter(self._pending.items()))
            raise StructureError(
                "Parts of an array fill its chunks.",
                f"chunk {list(index)} lacks {left} numbers, {len(self._pending)} chunks are not whole",
                "add every part that touches a missing chunk",
            )

    def _whole(self, region: Sequence[slice]) -> tuple[slice, ...]:
        rest = self.layout.shape[len(region) :]
        return (*region, *(slice(0, size) for size in rest))

    def _fill(self, index: Index, region: Sequence[slice], bits: np.ndarray) -> None:
        extent = self.layout.extent(index)
        chunk, left = self._pending.get(index) or (self._empty(), math.prod(s.stop - s.start for s in extent))
        target, source, count = [], [], 1
        for place, part in zip(extent, region, strict=True):
            low, high = max(place.start, part.start), min(place.stop, part.stop)
            target.append(slice(low - place.start, high - place.start))
            source.append(slice(low - part.start, high - part.start))
            count *= high - low
        whole = count == left and bits[tuple(source)].shape == self.layout.chunks
        if whole:
            chunk = np.ascontiguousarray(bits[tuple(source)])
        else:
            chunk[tuple(target)] = bits[tuple(source)]
        if count < left:
            self._pending[index] = (chunk, left - count)
            return
        self._pending.pop(index, None)
        put_chunk(self.folder, index, chunk, self.rank)
        self.missing.discard(index)

    def _empty(self) -> np.ndarray:
        filling = torch.full((1,), torch.nan, dtype=self.layout.dtype).view(_SIGNED[self.layout.dtype.itemsize]).numpy()
        return np.full(self.layout.chunks, filling.view(_BITS[self.layout.dtype])[0])


def chunk_path(folder: Path, index: Index) -> Path:
    """The file of a chunk of the array in a folder."""
    return folder.joinpath("c", *map(str, index))


def put_chunk(folder: Path, index: Index, bits: np.ndarray, rank: int = 0) -> None:
    """Write one chunk: the bits of its numbers (unsigned integers, contiguous), and their checksum, recorded with the place."""
    little: Any = bits.astype(bits.dtype.newbyteorder("<"), copy=False)
    data = memoryview(little).cast("B")
    check = checksum(data)
    record(folder, index, check, rank)
    write_file(chunk_path(folder, index), [data, check], str(rank))
