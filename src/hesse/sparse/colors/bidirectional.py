"""Both ways at once: some entries from products with sums of columns, the others from products with sums of rows.

Hossain and Steihaug, Computing a sparse Jacobian matrix by rows and columns, Optim. Methods Softw. 1998; Coleman and Verma, The
efficient computation of sparse Jacobian matrices using automatic differentiation, SIAM J. Sci. Comput. 1998. A star coloring
of the bipartite graph in which a vertex stays without color if its neighbors tell its entries apart, and of which colors that
no entry needs are left out: Montoison, Dalle and Gebremedhin, Revisiting sparse matrix coloring and bicoloring, 2025.
"""

from __future__ import annotations

import numpy as np

from hesse.sparse.colors.graph import bipartite, lists
from hesse.sparse.colors.star import Stars
from hesse.sparse.pattern import Indices, Pattern


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


def readable(pattern: Pattern, column_colors: Indices, row_colors: Indices) -> tuple[Indices, Indices]:
    """``[nnz]`` bools: entries that are alone in their row with the color of their column, and the same for rows."""
    by_column = _alone(pattern.rows, column_colors[pattern.indices], pattern.shape[0])
    by_row = _alone(pattern.indices, row_colors[pattern.rows], pattern.shape[1])
    return by_column, by_row


def _alone(lines: Indices, colors: Indices, size: int) -> Indices:
    colored = colors >= 0
    keys = lines * (int(colors.max(initial=0)) + 1) + np.maximum(colors, 0)
    counts = np.bincount(keys[colored])
    alone = np.zeros(len(lines), bool)
    alone[colored] = counts[keys[colored]] == 1
    return alone


def without_spare_colors(pattern: Pattern, column_colors: Indices, row_colors: Indices) -> tuple[Indices, Indices]:
    """Leave out colors as long as every entry can be read off by one that is kept, those that serve fewest entries first."""
    by_column, by_row = readable(pattern, column_colors, row_colors)
    sides = [np.where(by_column, column_colors[pattern.indices], -1), np.where(by_row, row_colors[pattern.rows], -1)]
    served = [np.bincount(side[side >= 0], minlength=1) for side in sides]
    candidates = sorted((int(n), side, color) for side in (0, 1) for color, n in enumerate(served[side]))
    ways = by_column.astype(np.int64) + by_row
    dropped: tuple[set[int], set[int]] = (set(), set())
    for _, side, color in candidates:
        users = sides[side] == color
        if (ways[users] > 1).all():
            ways[users] -= 1
            dropped[side].add(color)
    return _renumbered(column_colors, dropped[0]), _renumbered(row_colors, dropped[1])


def _renumbered(colors: Indices, dropped: set[int]) -> Indices:
    kept = [color for color in range(int(colors.max(initial=-1)) + 1) if color not in dropped]
    numbers = np.full(int(colors.max(initial=-1)) + 2, -1, np.int64)
    numbers[kept] = np.arange(len(kept))
    return numbers[colors]


def is_bidirectional(pattern: Pattern, column_colors: Indices, row_colors: Indices) -> bool:
    """Whether every entry is alone in its row with the color of its column, or in its column with the color of its row."""
    by_column, by_row = readable(pattern, column_colors, row_colors)
    return bool((by_column | by_row).all())
