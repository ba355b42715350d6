"""Star colorings at the speed of colorings of columns: fix where each entry is read, color, and fix it anew.

A symmetric matrix shows an entry (i, j) in row i or, mirrored, in row j. Once it is fixed which of the two is read, a coloring
is right if in every row the entries read there differ in color from all others of that row. So the entries read in a row, with
each one that is not, are groups of columns that must differ: rows of a larger pattern, whose colorings of columns are found by
a loop in C. A coloring that is there stays right for every choice among its own readings, so iterated greedy never gets worse
by a new choice: Culberson 1992 (see `hesse.sparse.colors.improve`) on a different graph at each pass.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from hesse.sparse.colors.columns import greedy_columns
from hesse.sparse.colors.improve import classes_in_turn
from hesse.sparse.colors.star import readable_symmetric
from hesse.sparse.compressed import Indices, Marks, ones
from hesse.sparse.pattern import Pattern

_PATIENCE, _PASSES = 20, 3  # choices of readings without a color less, and passes for each
_LARGEST, _ENTRY = 20_000_000, 1e-7  # entries of groups that memory is spent on, and seconds for each


def reoriented_greedy(pattern: Pattern, colors: Indices, fewest: int, until: float, seed: int) -> Iterator[Indices]:
    """Recolor unknowns class by class for other and other choices of readings, as long as there is time and hope.

    Args:
        pattern: symmetric.
        colors: ``[n]``, a valid star coloring.
        fewest: colors at which to stop.
        until: when to give up, by `time.monotonic`.
        seed: of the random choices.

    Yields:
        Star colorings with fewer and fewer colors.

    Cost: no gradients; 0.2 microseconds an entry for each pass, at most 60 that do not help.
    """
    generator, waiting = np.random.default_rng(seed), 0
    count = int(colors.max(initial=-1)) + 1
    while count > max(fewest, 1) and waiting < _PATIENCE and time.monotonic() < until:
        read = _readings(pattern, colors, generator)
        size = _size_of_groups(pattern, read)
        if size > _LARGEST or time.monotonic() + size * _ENTRY > until:
            return
        groups = _groups(pattern, read)
        waiting += 1
        for _ in range(_PASSES):
            colors = greedy_columns(groups, classes_in_turn(colors, generator))
            if int(colors.max()) + 1 < count:
                count, waiting = int(colors.max()) + 1, 0
                yield colors


def _readings(pattern: Pattern, colors: Indices, generator: np.random.Generator) -> Marks:
    """``[nnz]`` bools: one reading of every entry and its mirror image, by a random order where there are two."""
    here = readable_symmetric(pattern, colors)
    turns = generator.random(pattern.shape[0])
    return here & (~here[pattern.by_column] | (turns[pattern.indices] >= turns[pattern.rows]))


def _size_of_groups(pattern: Pattern, read: Marks) -> int:
    """Entries of the groups: in a full matrix as many as the cube of its side."""
    counts = np.bincount(pattern.rows[read], minlength=pattern.shape[0])
    return int(((np.diff(pattern.indptr) - counts) * (counts + 1)).sum())


def _groups(pattern: Pattern, read: Marks) -> Pattern:
    """``[groups, n]``: the entries that are read in a row, with each other one of the row, or alone if there is none."""
    rows, columns = pattern.rows, pattern.indices
    others = np.flatnonzero(~read)
    counts = np.bincount(rows[read], minlength=pattern.shape[0])
    lonely = counts > 0
    lonely[rows[others]] = False
    owners = np.concatenate([rows[others], np.flatnonzero(lonely)])
    lengths = counts[owners]
    lengths[: len(others)] += 1
    ends = np.concatenate([[0], np.cumsum(lengths)])
    starts = np.concatenate([[0], np.cumsum(counts)])[owners]
    places = np.arange(ends[-1]) + np.repeat(starts - ends[:-1], lengths)
    indices = np.append(columns[read], 0)[np.minimum(places, np.count_nonzero(read))]
    indices[ends[1 : len(others) + 1] - 1] = columns[others]  # the last one of its group
    across = ones((len(owners), pattern.shape[0]), ends, indices).tocsc()
    by_column = across.indptr.astype(np.int64), across.indices.astype(np.int64)
    return Pattern.trusted((pattern.shape[0], len(owners)), *by_column).T
