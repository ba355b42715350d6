"""Lines that are much fuller than the others get colors of their own, which leaves a pattern that is easily colored.

An arrow-head matrix has a few full rows and columns, in which every column meets every other. With a color for each of these
hubs the rest is a band or a diagonal: Coleman and More, Estimation of sparse Hessian matrices and graph coloring problems,
Math. Program. 1984, section 5; for rows and columns Coleman and Verma, SIAM J. Sci. Comput. 1998.
"""

from __future__ import annotations

import numpy as np

from hesse.sparse.compressed import Indices, Marks
from hesse.sparse.pattern import Pattern


def fullest(*sides: Pattern) -> tuple[int, int]:
    """From how many entries on a line is a hub.

    Args:
        sides: the pattern, whose rows are lines; or it and its transpose.

    Returns:
        The length that lines may have that are no hubs, and a guess of the colors: the hubs and that length, which is the
        least that the rest needs. The length is chosen to make the sum small.
    """
    counts = np.zeros(1, np.int64)  # of lines, by length
    for side in sides:
        found = np.bincount(np.diff(side.indptr), minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    total = counts.sum() - np.cumsum(counts) + np.arange(len(counts))
    length = len(total) - 1 - int(total[::-1].argmin())
    return length, int(total[length])


def are_hubs(pattern: Pattern, length: int) -> Marks:
    """``[rows]`` bools: rows with more than `length` entries."""
    return np.diff(pattern.indptr) > length


def without(pattern: Pattern, rows: Marks, columns: Marks) -> Pattern:
    """The pattern with no entries in some rows and columns, given as bools."""
    if not (rows.any() or columns.any()):
        return pattern
    kept = ~(rows[pattern.rows] | columns[pattern.indices])
    counts = np.bincount(pattern.rows[kept], minlength=pattern.shape[0])
    return Pattern.trusted(pattern.shape, np.concatenate([[0], np.cumsum(counts)]), pattern.indices[kept])


def with_own_colors(colors: Indices, hubs: Marks) -> Indices:
    """Colors in which each hub has one of its own, after those that there are."""
    colors = colors.copy()
    colors[hubs] = int(colors.max(initial=-1)) + 1 + np.arange(np.count_nonzero(hubs))
    return colors
