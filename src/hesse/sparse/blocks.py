"""Blocks of a pattern: those that it fills completely, and those of pairs of leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hesse.sparse.compressed import Indices
from hesse.sparse.pattern import Pattern


def found_block(pattern: Pattern) -> tuple[int, int]:
    """The largest blocks that a pattern consists of: each one full or empty.

    Args:
        pattern: any.

    Returns:
        Height and width. Rows of a block are alike, so its height divides every row number at which a row differs from the one
        before; columns likewise.
    """
    return _period(pattern), _period(pattern.T)


def _period(pattern: Pattern) -> int:
    lengths = np.diff(pattern.indptr)
    alike = np.append(False, lengths[1:] == lengths[:-1])
    own = alike[pattern.rows]
    before = np.arange(pattern.nnz)[own] - lengths[pattern.rows[own]]
    alike[pattern.rows[own][pattern.indices[own] != pattern.indices[before]]] = False
    return math.gcd(pattern.shape[0], int(np.gcd.reduce(np.flatnonzero(~alike)))) or 1


def block_places(pattern: Pattern, height: int, width: int) -> list[Tensor]:
    """Where entries go in compressed rows of blocks.

    Args:
        pattern: any.
        height, width: of blocks; divisors of the shape.

    Returns:
        ``[block rows + 1]`` ends, ``[blocks]`` their columns, and ``[nnz]`` places of entries in ``[blocks, height, width]``.
    """
    down, across = pattern.rows // height, pattern.indices // width
    wide = pattern.shape[1] // width
    blocks = Pattern.from_coordinates(down, across, (pattern.shape[0] // height, wide))
    number = np.searchsorted(blocks.rows * wide + blocks.indices, down * wide + across)
    targets = (number * height + pattern.rows % height) * width + pattern.indices % width
    return [torch.tensor(array) for array in (blocks.indptr, blocks.indices, targets)]


def leaf_blocks(pattern: Pattern, heights: Sequence[int], widths: Sequence[int]) -> tuple[Tensor, list[int], Tensor]:
    """Entries sorted by pairs of leaves, in one pass.

    Args:
        pattern: of the whole matrix.
        heights, widths: elements of the leaves of rows and columns.

    Returns:
        ``[nnz]`` the order, how many entries each pair has (rows first), and ``[2, nnz]`` places inside of the pairs.
    """
    tops, lefts = _starts(heights), _starts(widths)
    down = np.searchsorted(tops, pattern.rows, side="right") - 1
    across = np.searchsorted(lefts, pattern.indices, side="right") - 1
    pairs = down * len(widths) + across
    order = np.argsort(pairs, kind="stable")
    counts = np.bincount(pairs, minlength=len(heights) * len(widths))
    places = np.stack([pattern.rows - tops[down], pattern.indices - lefts[across]])[:, order]
    return torch.from_numpy(order), counts.tolist(), torch.from_numpy(places)


def _starts(sizes: Sequence[int]) -> Indices:
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)[:-1]]).astype(np.int64)
