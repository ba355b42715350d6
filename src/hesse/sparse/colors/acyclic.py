"""Acyclic colorings: a symmetric matrix from products with sums of its columns, by substitution.

No cycle has two colors only, so that any two colors make a forest: Coleman and Cai, The cyclic coloring problem and estimation
of sparse Hessian matrices, SIAM J. Algebr. Discrete Methods 1986; Gebremedhin, Tarafdar, Manne and Pothen, SIAM J. Sci. Comput.
2007.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse

from hesse.sparse.colors.columns import alone_in_rows, greedy_columns
from hesse.sparse.colors.graph import Lists, lists
from hesse.sparse.compressed import Indices, canonical
from hesse.sparse.pattern import Pattern

_Part = tuple[int, int]  # a vertex, and the other of the two colors


class _Forests:
    """The trees that every two colors make, as sets that are joined."""

    def __init__(self) -> None:
        self._above: dict[_Part, _Part] = {}

    def tree(self, part: _Part) -> _Part:
        """The name of the tree that a part stands in."""
        above = self._above
        root = part
        while root in above:
            root = above[root]
        while part != root:
            above[part], part = root, above[part]
        return root

    def join(self, a: _Part, b: _Part) -> None:
        """Make one tree of two."""
        a, b = self.tree(a), self.tree(b)
        if a != b:
            self._above[a] = b


def greedy_acyclic(graph: Pattern, order: Indices) -> Indices:
    """Color the vertices one after the other, each with the smallest color that closes no cycle of two colors.

    Args:
        graph: symmetric, without diagonal.
        order: ``[vertices]``, in which they are visited.

    Returns:
        ``[vertices]``, colors from 0 on.

    Cost: a pass over the edges for every color that is tried, about 2 microseconds each.
    """
    neighbors, forests = lists(graph), _Forests()
    colors = [-1] * len(neighbors)
    for vertex in order.tolist():
        groups = _by_color(neighbors, colors, vertex)
        color = 0
        while color in groups or _closes_cycle(forests, groups, color):
            color += 1
        colors[vertex] = color
        for other_color, members in groups.items():
            for other in members:
                forests.join((other, color), (vertex, other_color))
    return np.array(colors, np.int64)


def lower_triangle(pattern: Pattern, order: Indices) -> Indices:
    """Color the columns of the lower triangle such that no two of one color share a row.

    Powell and Toint, On the estimation of sparse Hessian matrices, SIAM J. Numer. Anal. 1979. That is an acyclic coloring: the
    last vertex of a cycle in two colors would have two neighbors of one color before it, whose columns share its row.

    Args:
        pattern: symmetric, with its diagonal.
        order: ``[n]``, in which rows and columns are taken.

    Returns:
        ``[n]``, colors from 0 on.

    Cost: no gradients; about 0.1 microseconds an entry.
    """
    lower: Any = scipy.sparse.tril(pattern.ones[order][:, order], format="csr")
    lower.sort_indices()
    colors = np.empty(len(order), np.int64)
    colors[order] = greedy_columns(Pattern.trusted(pattern.shape, *canonical(lower)))
    return colors


def _by_color(neighbors: Lists, colors: list[int], vertex: int) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for other in neighbors[vertex]:
        if colors[other] >= 0:
            groups.setdefault(colors[other], []).append(other)
    return groups


def _closes_cycle(forests: _Forests, groups: dict[int, list[int]], color: int) -> bool:
    """Whether two neighbors of one color stand in one tree of that color and this one."""
    for members in groups.values():
        if len(members) > 1 and len({forests.tree((other, color)) for other in members}) < len(members):
            return True
    return False


def is_acyclic(graph: Pattern, colors: Indices) -> bool:
    """Whether neighbors differ in color, and any two colors make a forest, which has as many trees as vertices less edges."""
    once = graph.rows < graph.indices
    i, j = graph.rows[once], graph.indices[once]
    a, b = colors[i], colors[j]
    if len(i) and (colors.min() < 0 or (a == b).any()):
        return False
    here = alone_in_rows(graph, colors)
    if (here | here[graph.by_column]).all():  # the trees are stars
        return True
    size, count = graph.shape[0], int(colors.max(initial=0)) + 1
    pairs = (np.minimum(a, b) * count + np.maximum(a, b)) * size  # every two colors on vertices of their own
    names, ends = np.unique(np.concatenate([pairs + i, pairs + j]), return_inverse=True)
    edges = scipy.sparse.coo_array((np.ones(len(i), bool), (ends[: len(i)], ends[len(i) :])), shape=(len(names),) * 2)
    trees, _ = scipy.sparse.csgraph.connected_components(edges, directed=False)
    return len(i) == len(names) - trees
