"""Where the numbers of an array lie on disk: a regular grid of chunks, in the words of the zarr format, version 3.

Chunks are not compressed, so that their size is known before the first one is made. Each ends in a CRC-32C of its bytes. What
was not written yet reads as NaN.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hesse.core.errors import StoreError, StructureError, UnsupportedError
from hesse.core.memory import format_bytes

CHECKSUM_BYTES = 4
DEFAULT_CHUNK_BYTES = 2**24
Index = tuple[int, ...]
_ZARR_TYPES = {torch.float64: "float64", torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "uint16"}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _ZARR_TYPES}
_BFLOAT16_NAN = 0x7FC0


@dataclass(frozen=True)
class ArrayLayout:
    """The shape, the type and the chunk grid of one stored array.

    Attributes:
        shape: of the array; no axis is empty.
        chunks: of one chunk, as many axes; chunks at the ends are stored whole, filled up with NaN.
        dtype: float64, float32, float16 or bfloat16 (which zarr does not know: stored as its bits, "uint16").
    """

    shape: Index
    chunks: Index
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if self.dtype not in _ZARR_TYPES:
            raise UnsupportedError(
                "Arrays of real floating-point numbers are stored in chunks.", str(self.dtype), f"one of {list(_DTYPES)}"
            )
        fits = len(self.shape) == len(self.chunks) > 0
        if not fits or any(not 0 < chunk <= size for chunk, size in zip(self.chunks, self.shape, strict=True)):
            raise StructureError(
                "Chunks divide an array along each of its axes.",
                f"chunks {list(self.chunks)} of an array {list(self.shape)}",
                "as many axes, each chunk of 1 to the axis's length",
            )

    @property
    def grid(self) -> Index:
        """Number of chunks along each axis."""
        return tuple(-(-size // chunk) for size, chunk in zip(self.shape, self.chunks, strict=True))

    @property
    def count(self) -> int:
        """Number of chunks."""
        return math.prod(self.grid)

    @property
    def file_bytes(self) -> int:
        """Bytes of one chunk's file."""
        return math.prod(self.chunks) * self.dtype.itemsize + CHECKSUM_BYTES

    @property
    def nbytes(self) -> int:
        """Bytes of all chunks' files: exact, since nothing is compressed."""
        return self.count * self.file_bytes

    def indices(self) -> Iterator[Index]:
        """All chunks, the last axis fastest."""
        return itertools.product(*map(range, self.grid))

    def extent(self, index: Index) -> tuple[slice, ...]:
        """Which part of the array a chunk holds."""
        spans = zip(index, self.chunks, self.shape, strict=True)
        return tuple(slice(i * chunk, min((i + 1) * chunk, size)) for i, chunk, size in spans)

    def touched(self, region: Sequence[slice]) -> Iterator[Index]:
        """The chunks that hold a part of a region (as many slices as axes, with both ends)."""
        spans = zip(region, self.chunks, strict=True)
        return itertools.product(*(range(part.start // chunk, -(-part.stop // chunk)) for part, chunk in spans))

    def __str__(self) -> str:
        sides, chunk = (" x ".join(map(str, sizes)) for sizes in (self.shape, self.chunks))
        dtype, each = str(self.dtype).removeprefix("torch."), format_bytes(self.file_bytes)
        return f"[{sides}] {dtype} in {self.count} chunks [{chunk}] of {each}: {format_bytes(self.nbytes)}"

    def to_zarr(self, names: Sequence[str], attributes: dict[str, Any]) -> dict[str, Any]:
        """The array's ``zarr.json``.

        Args:
            names: of the axes.
            attributes: anything that JSON can hold.
        """
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": _ZARR_TYPES[self.dtype],
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.chunks)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": _BFLOAT16_NAN if self.dtype == torch.bfloat16 else "NaN",
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
            "dimension_names": list(names),
            "attributes": {"dtype": str(self.dtype).removeprefix("torch."), **attributes},
        }

    @classmethod
    def of_zarr(cls, entry: dict[str, Any], shown: str) -> ArrayLayout:
        """The layout that `to_zarr` has written.

        Raises:
            StoreError: another one.
        """
        try:
            chunks = tuple(entry["chunk_grid"]["configuration"]["chunk_shape"])
            found = cls(tuple(entry["shape"]), chunks, _DTYPES[entry["attributes"]["dtype"]])
            same = found.to_zarr(entry["dimension_names"], entry["attributes"]) == entry
        except (KeyError, TypeError, AttributeError, StructureError, UnsupportedError):
            same, found = False, None
        if found is None or not same:
            raise StoreError(
                "hesse reads arrays that it has written.", f"another description in '{shown}'", "open it with zarr.open"
            )
        return found


def balanced(size: int, most: int) -> int:
    """The side of chunks that divide `size` evenly, of at most `most` (at least 1)."""
    return -(-size // -(-size // max(min(most, size), 1)))


def choose_chunks(shape: Sequence[int], itemsize: int, at_most: int = DEFAULT_CHUNK_BYTES) -> Index:
    """Chunks of about `at_most` bytes: whole along the last axes, divided evenly along the first one that does not fit.

    Args:
        shape: of the array; no axis is empty.
        itemsize: bytes of one number.
        at_most: bytes of a chunk, which it does not pass.
    """
    room, chunks = max(at_most // itemsize, 1), []
    for size in reversed(shape):
        chunks.append(balanced(size, room))
        room //= chunks[-1]
        room = room if chunks[-1] == size else 1
    return tuple(reversed(chunks))
