"""Columns that share no row get the same color: distance-2 colorings.

Curtis, Powell and Reid, On the estimation of sparse Jacobian matrices, IMA J. Appl. Math. 1974; as a coloring of graphs Coleman
and More 1983; its name and the algorithm of one pass over rows Gebremedhin, Manne and Pothen, What color is your Jacobian?,
SIAM Review 2005, section 3.
"""

from __future__ import annotations

import numpy as np

from hesse.sparse.colors.compiled import compiled_loop
from hesse.sparse.colors.graph import lists
from hesse.sparse.compressed import Indices, Marks
from hesse.sparse.pattern import Pattern

_STEP, _ENTRY = 1e-9, 1e-6  # seconds: for a vertex and color in C, for an entry in Python
_SHORT = 0.02
_WIDE, _LONG = 48, 1 << 14  # colors that fit in the bits of a number beside the carry from rows shorter than this
_SPARE = 16  # counters for each entry
_FEW = 256  # colors, of which it does not matter how many there are less


def greedy_columns(pattern: Pattern, order: Indices | None = None) -> Indices:
    """Color the columns one after the other, each with the smallest color that no row of it has yet.

    Args:
        pattern: whose columns are colored.
        order: ``[columns]``, in which they are visited; None for their own.

    Returns:
        ``[columns]``, colors from 0 on; -1 for columns without entries, which need none.

    Cost: about 10 to 100 ns an entry in C; 0.3 microseconds in Python where colors are so many that C would take longer.
    """
    steps = most_colors(pattern) * sum(pattern.shape)
    if compiled_loop() is None or steps * _STEP > max(_SHORT, pattern.nnz * _ENTRY):
        return greedy_in_python(pattern, order)
    return _greedy_in_c(pattern, order)


def _greedy_in_c(pattern: Pattern, order: Indices | None) -> Indices:
    loop, columns = compiled_loop(), pattern.T.ones
    assert loop is not None
    ends, rows = columns.indptr, columns.indices
    lengths = np.diff(ends)
    if order is None:
        colors = np.asarray(loop(*pattern.shape, rows, ends), np.int64)
    else:
        starts, lengths_then = ends[order], lengths[order]
        then = np.zeros_like(ends)
        np.cumsum(lengths_then, out=then[1:])
        places = np.arange(len(rows), dtype=ends.dtype) + np.repeat(starts - then[:-1], lengths_then)
        colors = np.empty(len(order), np.int64)
        colors[order] = loop(*pattern.shape, rows[places], then)
    colors[lengths == 0] = -1
    return colors


def greedy_in_python(pattern: Pattern, order: Indices | None = None) -> Indices:
    """The same colors, for any number of them: a bit for each."""
    columns = lists(pattern.T)
    taken = [0] * pattern.shape[0]  # by row
    colors = [-1] * pattern.shape[1]
    for column in range(pattern.shape[1]) if order is None else order.tolist():
        rows = columns[column]
        used = 0
        for row in rows:
            used |= taken[row]
        if rows:
            bit = ~used & (used + 1)
            for row in rows:
                taken[row] |= bit
            colors[column] = bit.bit_length() - 1
    return np.array(colors, np.int64)


def are_columns_apart(pattern: Pattern, colors: Indices) -> bool:
    """Whether no row has two entries of one color, and no entry is without color."""
    used = np.diff(pattern.T.indptr) > 0
    return not used.any() or (int(colors[used].min()) >= 0 and bool(alone_in_rows(pattern, colors).all()))


def alone_in_rows(pattern: Pattern, colors: Indices) -> Marks:
    """``[nnz]`` bools: entries with the color of their column (-1 for none) that no other one of their row has."""
    colored = (colors >= 0)[pattern.indices]
    wrong = _rows_with_clashes(pattern, colors)
    if wrong is not None and not wrong.any():
        return colored
    places = np.arange(pattern.nnz) if wrong is None else np.flatnonzero(wrong[pattern.rows])
    places, count = places[colored[places]], int(colors.max(initial=-1)) + 1
    keys = pattern.rows[places] * count + colors[pattern.indices[places]]
    if pattern.shape[0] * count > _SPARE * (pattern.nnz + 1):  # too many to count all: names for those that occur
        _, keys = np.unique(keys, return_inverse=True)
    colored[places] = np.bincount(keys)[keys] == 1
    return colored


def _rows_with_clashes(pattern: Pattern, colors: Indices) -> Marks | None:
    """``[rows]``: whether two entries have one color, for a few colors in short rows; None for others.

    Distinct powers of two have the same sum as union; sums of those that occur twice are larger, and too small to overflow.
    """
    lengths, count = np.diff(pattern.indptr), int(colors.max(initial=-1)) + 1
    if not pattern.nnz or count > _WIDE or lengths.max() >= _LONG:
        return None
    kind = np.uint32 if count <= _WIDE // 3 else np.uint64
    bits = np.where(colors < 0, kind(0), np.left_shift(kind(1), np.maximum(colors, 0).astype(kind)))[pattern.indices]
    full, wrong = lengths > 0, np.zeros(pattern.shape[0], bool)
    starts = pattern.indptr[:-1][full]
    wrong[full] = np.add.reduceat(bits, starts, dtype=kind) != np.bitwise_or.reduceat(bits, starts)
    return wrong


def fewest_columns(pattern: Pattern) -> int:
    """A lower bound of the colors of columns: the entries of the fullest row."""
    return int(np.diff(pattern.indptr).max(initial=0))


def neighbor_counts(pattern: Pattern) -> Indices:
    """``[columns]``: an upper bound of how many other columns each one meets, the entries of its rows less its own."""
    lengths = np.diff(pattern.indptr)
    meets = np.zeros(pattern.nnz + 1, np.int64)
    np.cumsum(lengths[pattern.T.indices] - 1, out=meets[1:])
    return meets[pattern.T.indptr[1:]] - meets[pattern.T.indptr[:-1]]


def most_colors(pattern: Pattern) -> int:
    """An upper bound of the colors of a greedy coloring in any order.

    A column of color c meets columns of all colors before. So if there are k colors, k - c columns meet c or more others, for
    every c < k, and with the counts sorted from above the i-th one is at least k - i.
    """
    longest, tallest = fewest_columns(pattern), fewest_columns(pattern.T)
    if (longest - 1) * tallest < _FEW:
        return max(0, longest - 1) * tallest + 1
    counts = neighbor_counts(pattern)
    counts = np.sort(counts)[::-1]
    return int((counts + np.arange(1, len(counts) + 1)).min())
