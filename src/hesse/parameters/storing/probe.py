"""A stored part compared with the same part computed again, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hesse.core.chunk_store import ChunkStore
from hesse.core.errors import DataError


def read_region(store: ChunkStore, name: str, region: Sequence[slice]) -> Tensor:
    """A part of an array (a slice with both ends for each axis), from its chunks.

    Raises:
        StoreError: a damaged or a missing chunk.
    """
    layout = store.arrays[name]
    result = torch.empty([part.stop - part.start for part in region], dtype=layout.dtype)
    for index in layout.touched(region):
        chunk, extent = store.read(name, index), layout.extent(index)
        spans = [
            (max(place.start, part.start), min(place.stop, part.stop)) for place, part in zip(extent, region, strict=True)
        ]
        target = tuple(slice(a - part.start, b - part.start) for (a, b), part in zip(spans, region, strict=True))
        source = tuple(slice(a - place.start, b - place.start) for (a, b), place in zip(spans, extent, strict=True))
        result[target] = chunk[source]
    return result


def require_same_bits(store: ChunkStore, name: str, start: Sequence[int], values: Tensor) -> None:
    """Refuse to go on where the numbers that are stored would not come out again.

    Args:
        store, name: the array.
        start: where the part begins, other axes at 0.
        values: the part, computed again.

    Raises:
        DataError: another bit somewhere.
    """
    start = (*start, *(0 for _ in range(values.ndim - len(start))))
    stored = read_region(store, name, [slice(a, a + n) for a, n in zip(start, values.shape, strict=True)])
    found = values.detach().cpu()
    different = int((_bits(stored) != _bits(found)).sum())
    if different:
        apart = (stored.double() - found.double()).abs().nan_to_num(torch.inf).max()
        raise DataError(
            f"A run goes on with '{store.path}' only where it would write the same numbers, bit for bit.",
            f"{different} of {found.numel()} numbers computed again at {list(start)} differ, by up to {float(apart):.3g}",
            "the model's code, the loss, the machine or its kernels changed, or they are not deterministic "
            "(torch.use_deterministic_algorithms): go on as it was begun, or write to another folder",
        )


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view({8: torch.int64, 4: torch.int32, 2: torch.int16}[values.dtype.itemsize])
