"""Star colorings: a symmetric matrix from products with sums of its columns, each entry or its mirror image read off directly.

No path of four vertices has two colors only: Coleman and More, Estimation of sparse Hessian matrices and graph coloring
problems, Math. Program. 1984; Gebremedhin, Tarafdar, Manne and Pothen, New acyclic and star coloring algorithms with
application to computing Hessians, SIAM J. Sci. Comput. 2007.
"""

from __future__ import annotations

import numpy as np

from hesse.sparse.colors.columns import alone_in_rows
from hesse.sparse.colors.graph import Lists, lists
from hesse.sparse.compressed import Indices, Marks
from hesse.sparse.pattern import Pattern

_CLIQUE = 512  # vertices that a clique is sought among


class Stars:
    """A star coloring as it grows.

    With a bit for each color, every vertex w knows the colors of its neighbors, how many have each of them, and `closed[w]`:
    the colors of those neighbors x of w that have a second neighbor of the color of w. A vertex v beside w would end a path
    v, w, x, y of two colors with one of these. So a color is found in one pass over the neighbors, where the algorithms of
    Gebremedhin et al. look at the neighbors of neighbors.

    Args:
        neighbors: of each vertex.
    """

    def __init__(self, neighbors: Lists) -> None:
        self.neighbors = neighbors
        self.bits = [0] * len(neighbors)  # of the vertex's own color
        self.around = [0] * len(neighbors)
        self._closed = [0] * len(neighbors)
        self._of_color: list[dict[int, list[int]]] = [{} for _ in neighbors]

    def color(self, vertex: int, forbidden: int = 0) -> int:
        """Give a vertex the smallest color that it may have besides those forbidden, and return its bit."""
        used, own = forbidden, self._of_color[vertex]
        for other in self.neighbors[vertex]:
            bit = self.bits[other]
            if bit:
                used |= self._closed[other]
                if len(own[bit]) > 1:
                    used |= self.around[other]
        bit = ~used & (used + 1)
        self.bits[vertex] = bit
        self._note(vertex, bit)
        return bit

    def tells_apart(self, vertex: int) -> bool:
        """Whether the neighbors of a vertex all have colors, no two the same."""
        return len(self._of_color[vertex]) == len(self.neighbors[vertex])

    def _note(self, vertex: int, bit: int) -> None:
        bits, closed = self.bits, self._closed
        for other in self.neighbors[vertex]:
            self.around[other] |= bit
            same = self._of_color[other].setdefault(bit, [])
            same.append(vertex)
            if bits[other]:
                if len(same) == 2:  # the other has two neighbors of this color now
                    closed[same[0]] |= bits[other]
                if len(same) > 1:
                    closed[vertex] |= bits[other]
        for same in self._of_color[vertex].values():
            if len(same) > 1:
                for other in same:
                    closed[other] |= bit


def greedy_star(graph: Pattern, order: Indices) -> Indices:
    """Color the vertices one after the other, each with the smallest color that closes no path of four in two colors.

    Args:
        graph: symmetric, without diagonal.
        order: ``[vertices]``, in which they are visited.

    Returns:
        ``[vertices]``, colors from 0 on.

    Cost: a pass over the edges, about 1 microsecond each.
    """
    stars = Stars(lists(graph))
    colors = np.empty(graph.shape[0], np.int64)
    for vertex in order.tolist():
        colors[vertex] = stars.color(vertex, stars.around[vertex]).bit_length() - 1
    return colors


def fewest_symmetric(pattern: Pattern, acyclic: bool) -> int:
    """A lower bound of star and acyclic colors: the size of a clique of unknowns with diagonal entries, found greedily.

    Where every unknown needs a color, star colorings of a path of four have three, and so do acyclic ones of as many edges as
    vertices, among which there is a cycle.

    Args:
        pattern: symmetric.
        acyclic: every unknown needs a color then, with a diagonal entry or without.
    """
    diagonal = pattern.rows == pattern.indices
    edges = np.count_nonzero(~diagonal)
    least = 3 if acyclic and edges >= 2 * pattern.shape[0] > 0 else 1
    if not acyclic and edges + pattern.shape[0] == pattern.nnz:
        inner = np.diff(pattern.indptr) > 2  # two neighbors beside the diagonal entry
        least = 3 if (~diagonal & inner[pattern.rows] & inner[pattern.indices]).any() else least
    candidates = np.arange(pattern.shape[0])
    if not acyclic:
        candidates = pattern.rows[diagonal]
    degrees = np.diff(pattern.indptr)[candidates]
    candidates = candidates[np.argsort(-degrees, kind="stable")[:_CLIQUE]]
    near, clique = pattern.ones[candidates][:, candidates].toarray() > 0, []
    for vertex in range(len(candidates)):
        if near[vertex, clique].all():
            clique.append(vertex)
    return max(least, len(clique))


def readable_symmetric(pattern: Pattern, colors: Indices) -> Marks:
    """``[nnz]`` bools: entries that are alone in their row with the color of their column, so that a product shows them.

    Args:
        pattern: symmetric.
        colors: ``[n]``; -1 for none.
    """
    return alone_in_rows(pattern, colors)


def is_star(pattern: Pattern, colors: Indices) -> bool:
    """Whether each entry or its mirror image can be read off.

    Where every diagonal entry is stored these are the star colorings: Coleman and More 1984, theorem 3.1. Without some of them
    neighbors may share a color, and unknowns may do without one.
    """
    here = readable_symmetric(pattern, colors)
    return bool((here | here[pattern.by_column]).all())


def without_needless_colors(pattern: Pattern, colors: Indices) -> Indices:
    """Leave colors out as long as each entry can be read off without them; those that show the fewest entries first.

    Only unknowns without a diagonal entry can do without a color. Gebremedhin, Tarafdar, Pothen and Walther, Efficient
    computation of sparse Hessians using coloring and automatic differentiation, INFORMS J. Comput. 2009; Montoison, Dalle and
    Gebremedhin, Revisiting sparse matrix coloring and bicoloring, 2025.
    """
    if np.count_nonzero(pattern.rows == pattern.indices) == pattern.shape[0]:
        return colors
    here, mirror = readable_symmetric(pattern, colors), pattern.by_column
    ways = here.astype(np.int64) + here[mirror]
    shown = np.where(here, colors[pattern.indices], -1)
    diagonal = pattern.rows == pattern.indices
    order = np.argsort(shown, kind="stable")
    ends = np.searchsorted(shown[order], np.arange(int(colors.max(initial=-1)) + 2))
    dropped = np.zeros(len(ends), bool)  # the last one stands for unknowns without color
    for color in np.argsort(np.diff(ends), kind="stable").tolist():
        own = order[ends[color] : ends[color + 1]]
        twice = shown[mirror[own]] == color
        if not diagonal[own].any() and (ways[own] - twice > 1).all():
            ways[own] -= 1
            ways[mirror[own]] -= 1
            dropped[color] = True
    numbers = np.where(dropped, -1, np.cumsum(~dropped) - 1)
    numbers[-1] = -1
    return numbers[colors]
