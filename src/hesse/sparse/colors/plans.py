"""What is tried for each kind of coloring, in which order: bounds and loops in C first, Python where it is quick enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from hesse.core import random
from hesse.sparse.colors.acyclic import greedy_acyclic, lower_triangle
from hesse.sparse.colors.bidirectional import greedy_bidirectional, without_spare_colors
from hesse.sparse.colors.columns import fewest_columns, greedy_columns, neighbor_counts
from hesse.sparse.colors.graph import bipartite, intersections, pairs_of_columns, without_diagonal
from hesse.sparse.colors.hubs import are_hubs, fullest, with_own_colors, without
from hesse.sparse.colors.improve import iterated_greedy
from hesse.sparse.colors.lattice import lattice_columns
from hesse.sparse.colors.orders import Order, needs_graph, order_of
from hesse.sparse.colors.reorient import reoriented_greedy
from hesse.sparse.colors.search import Search
from hesse.sparse.colors.star import fewest_symmetric, greedy_star, without_needless_colors
from hesse.sparse.compressed import Indices, Marks
from hesse.sparse.pattern import Pattern

_EDGE, _ENTRY = 1.5e-6, 2e-6  # seconds in Python: for an edge and an order that follows it, for an entry and a coloring
_FIRST = 0.2  # seconds that the first greedy coloring in Python may take where there is a quick one already
_SHARE = 0.3  # of the time, for a part of a coloring
_SMALL = 200_000  # entries of a pattern for which a pass takes no time to speak of
_PRODUCT = 5e-8  # seconds for an edge of an intersection graph
_PAIRS = 4_000_000  # edges of an intersection graph that is worth building for the sake of an order


class Tries(NamedTuple):
    """Orders that are tried, for how many seconds after the first coloring, and the generator of random ones."""

    orders: tuple[Order, ...]
    seconds: float
    generator: torch.Generator | None


def best_columns(pattern: Pattern, tries: Tries) -> Search:
    """Columns: greedy in several orders, a formula where the pattern is a stencil, and iterated greedy on the best.

    Args:
        pattern: whose columns are colored.
        tries: what, and for how long.

    Returns:
        The best one, with ``[columns]`` colors; -1 where there is no entry.

    Cost: a pass in C for each order, 10 to 100 ns an entry.
    """
    search = Search(fewest_columns(pattern), tries.seconds)
    used = np.diff(pattern.T.indptr) > 0
    if search.fewest == np.count_nonzero(used):
        search.offer("a color each", np.where(used, np.cumsum(used) - 1, -1))
        return search
    orders = _column_orders(pattern, tries, search)
    name, order = next(orders)
    search.offer(f"{name} order", greedy_columns(pattern, order))
    if search.goes_on():
        colors, near = lattice_columns(pattern, search.count - 1)
        if colors is not None:
            search.offer("by formula", colors)
        for classes in near:
            if search.goes_on() or (search.count > search.fewest and pattern.nnz < _SMALL):
                search.offer("formula's order", greedy_columns(pattern, np.argsort(classes, kind="stable")))
    for name, order in orders:
        search.offer(f"{name} order", greedy_columns(pattern, order))
    if search.goes_on():
        seed = random.seed_of(tries.generator)
        for colors in iterated_greedy(pattern, search.colors, search.fewest, search.until, seed):
            search.offer(f"{search.name.removesuffix(', iterated')}, iterated", colors)
    return search


def _column_orders(pattern: Pattern, tries: Tries, search: Search) -> Iterator[tuple[Order, Indices | None]]:
    """Orders as long as the search goes on; those that follow the edges of the intersection graph only where it is small."""
    pairs, graph, given = pairs_of_columns(pattern), None, False
    for order in tries.orders:
        if order in ("natural", "random"):
            found = None if order == "natural" else order_of(order, pattern.shape[1], None, tries.generator)
        elif order == "largest first" and (pairs > _PAIRS or not search.goes_on(pairs * _PRODUCT)):
            found = np.argsort(-neighbor_counts(pattern), kind="stable")  # a bound of the degrees
        elif order == "largest first":
            graph = intersections(pattern)
            found = order_of(order, pattern.shape[1], graph)
        elif pairs > _PAIRS or not search.goes_on(pairs * _EDGE):
            continue
        else:
            graph = intersections(pattern) if graph is None else graph
            found = order_of(order, pattern.shape[1], graph)
        yield order, found
        given = True
        if not search.goes_on():
            return
    if not given:
        yield "natural", None


def best_symmetric(pattern: Pattern, acyclic: bool, tries: Tries) -> Search:
    """Star or acyclic colorings: hubs and columns in C first, then greedy in Python in several orders.

    Args:
        pattern: symmetric.
        acyclic: for entries by substitution; star colorings otherwise.
        tries: what, and for how long.

    Returns:
        The best one, with ``[n]`` colors.

    Cost: 0.1 microseconds an entry, and 1 to 4 for each order if there is time.
    """
    search = Search(fewest_symmetric(pattern, acyclic), tries.seconds)
    if not pattern.nnz:
        search.offer("nothing to color", np.full(pattern.shape[0], -1, np.int64))
        return search
    whole = _with_diagonal(pattern) if acyclic else pattern  # so that neighbors differ
    hubs = are_hubs(whole, fullest(whole)[0])
    rest = best_columns(without(whole, hubs, hubs), tries._replace(seconds=_SHARE * tries.seconds))
    finish: Callable[[Indices], Indices] = _same if acyclic else lambda colors: without_needless_colors(pattern, colors)
    search.offer(rest.name + _named(hubs), finish(with_own_colors(rest.colors, hubs)))
    graph = without_diagonal(pattern)
    if acyclic:
        for order in ("natural", "largest first"):
            if search.goes_on():
                visits = order_of(order, graph.shape[0], graph)
                search.offer(f"lower triangle in {order} order", lower_triangle(whole, visits))
    greedy: Callable[[Pattern, Indices], Indices] = greedy_acyclic if acyclic else greedy_star
    seconds = graph.nnz * _ENTRY
    first = 0.0 if rest.name == "by formula" else _FIRST
    for number, order in enumerate(tries.orders):
        if search.goes_on(seconds) or (not number and search.count > search.fewest and seconds < first):
            search.offer(f"{order} order", finish(greedy(graph, order_of(order, graph.shape[0], graph, tries.generator))))
    if search.goes_on() and not acyclic:
        seed = random.seed_of(tries.generator)
        for colors in reoriented_greedy(pattern, search.colors, search.fewest, search.until, seed):
            search.offer(f"{search.name.removesuffix(', iterated')}, iterated", finish(colors))
    return search


def best_both(pattern: Pattern, tries: Tries) -> Search:
    """Columns and rows at once: hubs of both sides with the columns or the rows of the rest, then greedy in Python.

    In the greedy ones full rows and columns have to come first, which orders by degree see to: columns in front of all rows
    would take one color, and leave every row one of its own.

    Args:
        pattern: any.
        tries: what, and for how long.

    Returns:
        The best one, with ``[columns]`` and ``[rows]`` colors.

    Cost: 0.2 microseconds an entry, and 2 to 4 for each order if there is time.
    """
    search = Search(-(-pattern.nnz // max(1, *pattern.shape)), tries.seconds)
    length, _ = fullest(pattern, pattern.T)
    hubs = are_hubs(pattern, length), are_hubs(pattern.T, length)
    rest = without(pattern, *hubs)
    columns, rows = best_columns(rest, tries), best_columns(rest.T, tries)
    none = [np.full(size, -1, np.int64) for size in pattern.shape]
    found = [(columns.name, columns.colors, none[0]), (rows.name, none[1], rows.colors)]
    for name, by_column, by_row in found:
        sides = with_own_colors(by_column, hubs[1]), with_own_colors(by_row, hubs[0])
        search.offer(name + _named(*hubs), *without_spare_colors(pattern, *sides))
    graph, seconds = bipartite(pattern), 2 * pattern.nnz * _ENTRY
    for order in sorted(tries.orders, key=lambda order: not needs_graph(order)):
        if search.goes_on(seconds):
            visits = order_of(order, graph.shape[0], graph, tries.generator)
            search.offer(f"{order} order", *greedy_bidirectional(pattern, visits))
    return search


def _with_diagonal(pattern: Pattern) -> Pattern:
    every = np.arange(pattern.shape[0])
    return pattern | Pattern.from_coordinates(every, every, pattern.shape)


def _named(*hubs: Marks) -> str:
    count = sum(int(np.count_nonzero(side)) for side in hubs)
    return f" and {count} hub{'s' * (count > 1)}" if count else ""


def _same(colors: Indices) -> Indices:
    return colors
