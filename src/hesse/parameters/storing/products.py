"""Products with the chunks of a stored matrix, summed up so that long rows in float32 keep their digits."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from hesse.core.progress import track
from hesse.parameters.storing.bands import Bands

_COLUMNS_AT_ONCE = 2**14


def contract(vectors: Tensor, values: Tensor, over: list[int]) -> Tensor:
    """``[k, *over]`` with some axes of a tile, in pieces of the columns as in `_inner_products`."""
    product: Any = torch.tensordot
    axes = (list(range(1, vectors.ndim)), over)
    if over[-1] != values.ndim - 1:
        return product(vectors, values, axes)
    pairs = zip(vectors.split(_COLUMNS_AT_ONCE, -1), values.split(_COLUMNS_AT_ONCE, -1), strict=True)
    return functools.reduce(Tensor.add_, (product(a, b, axes) for a, b in pairs))


def _inner_products(first: Tensor, second: Tensor) -> Tensor:
    """``first secondᵀ``, added up over pieces of the columns: one sum over a million of them in float32 was off by 8e-5."""
    pairs = zip(first.split(_COLUMNS_AT_ONCE, 1), second.split(_COLUMNS_AT_ONCE, 1), strict=True)
    parts = (a @ b.mT for a, b in pairs)
    return functools.reduce(Tensor.add_, parts)


def add_inner_products(bands: Bands, part: slice, inner: list[slice], result: Tensor) -> None:
    """Add inner products of the rows of some bands with each other and with all rows before them.

    Args:
        bands: of the stored matrix.
        part: which of the bands; their rows are held at once.
        inner: of the axes after the first, the ranges that are summed over; the last one is of columns.
        result: ``[N, C, N, C]``, to which they are added; of a sum over all columns the whole matrix.
    """
    here = bands.bands[part]
    place = slice(here[0].rows.start, here[-1].rows.stop)
    width, each = inner[-1].stop - inner[-1].start, result.shape[1]
    held = torch.empty(place.stop - place.start, each, width, dtype=result.dtype, device=result.device)
    for band in here:
        held[band.rows.start - place.start : band.rows.stop - place.start] = _rows(bands, band.rows, inner)
    flat = held.flatten(0, 1)
    result[place, :, place] += _inner_products(flat, flat).reshape(len(held), each, len(held), each)
    for band in bands.bands[: part.start]:
        there = _rows(bands, band.rows, inner).to(result.dtype)
        block = _inner_products(flat, there.flatten(0, 1)).reshape(len(held), each, len(there), each)
        result[place, :, band.rows] += block
        result[band.rows, :, place] += block.permute(2, 3, 0, 1)


def row_norms(bands: Bands, groups: dict[str, list[slice]], shape: tuple[int, ...]) -> dict[str, Tensor]:
    """2-norms of the rows by groups of columns, chunk by chunk: name -> ``[N]`` (``[N, C]``).

    Args:
        bands: of the stored matrix.
        groups: name -> ranges of columns.
        shape: of the rows, ``[N]`` or ``[N, C]``.
    """
    squares = {name: torch.zeros(shape, dtype=torch.float64, device=bands.device) for name in groups}
    for tile in track(bands.tiles(), "stored norms", None):
        *place, columns = tile.place
        for name, spans in groups.items():
            for span in spans:
                low, high = max(span.start, columns.start), min(span.stop, columns.stop)
                if low < high:
                    part = tile.values[..., low - columns.start : high - columns.start]
                    wide = torch.promote_types(part.dtype, torch.float32)
                    squares[name][tuple(place)] += torch.linalg.vector_norm(part, dim=-1, dtype=wide).double().square()
    return {name: square.sqrt().to(bands.layout.dtype) for name, square in squares.items()}


def _rows(bands: Bands, part: slice, inner: list[slice]) -> Tensor:
    rows = bands.rows(torch.arange(part.start, part.stop), inner)
    return rows.reshape(len(rows), -1, rows.shape[-1])
