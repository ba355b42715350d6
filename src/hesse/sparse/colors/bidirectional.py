"""Both ways at once: some entries from products with sums of columns, the others from products with sums of rows.

Hossain and Steihaug, Computing a sparse Jacobian matrix by rows and columns, Optim. Methods Softw. 1998; Coleman and Verma, The
efficient computation of sparse Jacobian matrices using automatic differentiation, SIAM J. Sci. Comput. 1998. A star coloring
of the bipartite graph in which a vertex stays without color if its neighbors tell its entries apart, and of which colors that
no entry needs are left out: Montoison, Dalle and Gebremedhin, Revisiting sparse matrix coloring and bicoloring, 2025.
"""

from __future__ import annotations

import numpy as np

from hesse.sparse.colors.columns import alone_in_rows
from hesse.sparse.colors.graph import bipartite, lists
from hesse.sparse.colors.star import Stars
from hesse.sparse.compressed import Indices, Marks
from hesse.sparse.pattern import Pattern


def greedy_bidirectional(pattern: Pattern, order: Indices) -> tuple[Indices, Indices]:
    """Color columns and rows, such that every entry can be read off at one of the two.

    Args:
        pattern: any.
        order: ``[columns + rows]``, in which columns (first) and rows (after them) are visited.

    Returns:
        The colors of the columns and of the rows, from 0 on; -1 where none is needed.

    Cost: a pass over the entries, about 2 microseconds each.
    """
    columns = pattern.shape[1]
    stars = Stars(lists(bipartite(pattern)))
    colors = np.full(len(stars.neighbors), -1, np.int64)
    for vertex in order.tolist():
        if stars.tells_apart(vertex):
            continue
        apart = 0  # lines through an uncolored vertex differ, as if it stayed without color
        for other in stars.neighbors[vertex]:
            if not stars.bits[other]:
                apart |= stars.around[other]
        colors[vertex] = stars.color(vertex, apart).bit_length() - 1
    return without_spare_colors(pattern, colors[:columns], colors[columns:])


def readable(pattern: Pattern, column_colors: Indices, row_colors: Indices) -> tuple[Marks, Marks]:
    """``[nnz]`` bools: entries that are alone in their row with the color of their column, and the same for rows."""
    by_row = np.empty(pattern.nnz, bool)
    by_row[pattern.by_column] = alone_in_rows(pattern.T, row_colors)
    return alone_in_rows(pattern, column_colors), by_row


def without_spare_colors(pattern: Pattern, column_colors: Indices, row_colors: Indices) -> tuple[Indices, Indices]:
    """Leave out colors as long as every entry can be read off by one that is kept, those that serve fewest entries first."""
    colors, read = (column_colors, row_colors), readable(pattern, column_colors, row_colors)
    ways, candidates, users = read[0].astype(np.int64) + read[1], [], []
    for side, lines in enumerate((pattern.indices, pattern.rows)):
        entries = np.flatnonzero(read[side])
        own = colors[side][lines[entries]]
        order = np.argsort(own, kind="stable")
        ends = np.searchsorted(own[order], np.arange(int(colors[side].max(initial=-1)) + 2))
        users.append((entries[order], ends))
        candidates += [(count, side, color) for color, count in enumerate(np.diff(ends).tolist())]
    dropped = [np.zeros(len(ends) - 1, bool) for _, ends in users]
    for _, side, color in sorted(candidates):
        entries, ends = users[side]
        own = entries[ends[color] : ends[color + 1]]
        if (ways[own] > 1).all():
            ways[own] -= 1
            dropped[side][color] = True
    return _renumbered(column_colors, dropped[0]), _renumbered(row_colors, dropped[1])


def _renumbered(colors: Indices, dropped: Marks) -> Indices:
    return np.append(np.where(dropped, -1, np.cumsum(~dropped) - 1), -1)[colors]


def is_bidirectional(pattern: Pattern, column_colors: Indices, row_colors: Indices) -> bool:
    """Whether every entry is alone in its row with the color of its column, or in its column with the color of its row."""
    by_column, by_row = readable(pattern, column_colors, row_colors)
    return bool((by_column | by_row).all())
