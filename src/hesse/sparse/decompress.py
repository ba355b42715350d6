"""The entries of a matrix from its products with sums of columns and of rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hesse.sparse.colored import ColoredPattern
from hesse.sparse.colors.bidirectional import readable
from hesse.sparse.colors.star import readable_symmetric
from hesse.sparse.pattern import Indices, Pattern
from hesse.sparse.substitution import Level, levels

_SMALL = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Decompression:
    """How entries follow from products.

    Args:
        source: ``[nnz]``: the element of the flat products that holds each entry, in the order of the pattern: first
            ``[column colors, rows]``, then ``[row colors, columns]``; int32 where that suffices, 1.4 times faster to gather by.
        levels: for acyclic colorings, what has to be subtracted, in this order.
    """

    source: Tensor
    levels: tuple[Level, ...] = ()

    @staticmethod
    def of(colored: ColoredPattern) -> Decompression:
        """For a coloring of any kind."""
        source = _sources(colored)
        largest = colored.columns * colored.pattern.shape[0] + colored.rows * colored.pattern.shape[1]
        tensor = torch.from_numpy(source.astype(np.int32 if largest < _SMALL else np.int64))
        return Decompression(tensor, levels(colored.pattern, colored.column_colors) if colored.kind == "acyclic" else ())

    def indices(self) -> list[Tensor]:
        """All of its index tensors, which never change."""
        return [self.source, *(t for level in self.levels for t in (level.entries, level.mirrors, level.known, level.targets))]

    def values(self, products: Tensor) -> Tensor:
        """The entries.

        Args:
            products: flat, in the order of `source`.

        Returns:
            ``[nnz]``, differentiable by the products.
        """
        return self._substituted(products.index_select(0, self.source.to(products.device)))

    def read(self, products: Iterable[Tensor]) -> list[Tensor]:
        """What the entries are read from, of products one piece after the other, each of which is dropped then.

        Args:
            products: flat, in pieces that follow each other in the order of `source`.

        Returns:
            A piece for each, which together have as many elements as there are entries, in the order of `source`.
        """
        found, start, places = [], 0, self.source.sort().values
        for piece in products:
            low, high = torch.searchsorted(places, torch.tensor([start, start + len(piece)], dtype=places.dtype)).tolist()
            found.append(piece.index_select(0, (places[low:high] - start).to(piece.device)))
            start += len(piece)
        return found

    def ordered(self, read: Tensor) -> Tensor:
        """The entries.

        Args:
            read: the pieces of `read`, joined.

        Returns:
            ``[nnz]``, differentiable by these.
        """
        order = self.source.argsort()
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order))
        return self._substituted(read.index_select(0, places.to(read.device)))

    def _substituted(self, values: Tensor) -> Tensor:
        for level in self.levels:
            values = level.subtract(values)
        return values


def _sources(colored: ColoredPattern) -> Indices:
    """``[nnz]``: the element of the flat products that shows each entry."""
    pattern, columns = colored.pattern, colored.column_colors
    by_column = columns[pattern.indices] * pattern.shape[0] + pattern.rows
    if colored.kind in ("column", "acyclic"):
        return by_column
    if colored.kind == "star":
        return _star(pattern, columns)
    products = colored.columns * pattern.shape[0]
    by_row = products + colored.row_colors[pattern.rows] * pattern.shape[1] + pattern.indices
    if colored.kind == "row":
        return by_row
    alone, _ = readable(pattern, columns, colored.row_colors)
    return np.where(alone, by_column, by_row)


def _star(pattern: Pattern, colors: Indices) -> Indices:
    """An entry is read in its row if no other entry there has the color of its column, and in its mirror image's if not."""
    here = colors[pattern.indices] * pattern.shape[0] + pattern.rows
    there = colors[pattern.rows] * pattern.shape[0] + pattern.indices
    return np.where(readable_symmetric(pattern, colors), here, there)


def seeds(colors: Indices, count: int) -> Tensor:
    """``[colors, n]``: ones where a column (row) has a color."""
    result = torch.zeros(count, len(colors), dtype=torch.bool)
    used = np.flatnonzero(colors >= 0)
    result[torch.from_numpy(colors[used]), torch.from_numpy(used)] = True
    return result
