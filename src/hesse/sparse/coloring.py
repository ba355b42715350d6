"""`coloring`: the fewest products that tell all entries of a matrix apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch

from hesse.core.errors import StructureError
from hesse.sparse.colored import KINDS, ColoredPattern, Kind
from hesse.sparse.colors.acyclic import greedy_acyclic
from hesse.sparse.colors.bidirectional import greedy_bidirectional
from hesse.sparse.colors.columns import fewest_columns, greedy_columns
from hesse.sparse.colors.graph import bipartite, intersections, lists, pairs_of_columns, without_diagonal
from hesse.sparse.colors.lattice import lattice_columns
from hesse.sparse.colors.orders import ORDERS, Order, needs_graph, order_of
from hesse.sparse.colors.star import greedy_star
from hesse.sparse.pattern import Indices, Pattern

_PAIRS = 4_000_000  # edges of an intersection graph that is worth building for the sake of an order
_LARGE = 20_000  # columns from which a formula is tried before the greedy pass
_PATIENCE = 0.2  # seconds for the search of a formula
_Candidate = tuple[str, Indices]


def coloring(
    pattern: Any,
    *,
    kind: Kind | Literal["auto"] = "auto",
    orders: Sequence[Order] = ORDERS,
    seconds: float = 0.2,
    generator: torch.Generator | None = None,
) -> ColoredPattern:
    """Color a pattern, several ways, and keep the one with the fewest colors.

    Args:
        pattern: a `Pattern`, or a matrix that has one (see `Pattern.of`).
        kind: "column" (for forward mode), "row" (for reverse mode), "bidirectional" (both at once), "star" or "acyclic" (of a
            symmetric matrix), or "auto": the fewest colors of the first three.
        orders: of the vertices, tried in turn.
        seconds: after which no other way is tried; the first one always runs to its end.
        generator: for the order "random".

    Returns:
        The colors, with the pattern.

    Raises:
        StructureError: an unknown kind or order, a symmetric coloring of a pattern that is not symmetric.

    Cost: no gradients. About 0.3 microseconds an entry and order for columns and rows, 1 to 2 for the others.
    """
    pattern = Pattern.of(pattern)
    if kind not in (*KINDS, "auto"):
        raise StructureError(f"kind is one of {', '.join(map(repr, (*KINDS, 'auto')))}.", repr(kind), "pass one of these")
    for order in orders:
        if order not in ORDERS:
            raise StructureError(f"Orders are {', '.join(map(repr, ORDERS))}.", repr(order), "pass some of these")
    until = time.monotonic() + seconds
    if kind == "auto":
        return _fewest(pattern, orders, until, generator)
    return _of_kind(pattern, kind, orders, until, generator)


def _of_kind(
    pattern: Pattern, kind: Kind, orders: Sequence[Order], until: float, generator: torch.Generator | None
) -> ColoredPattern:
    rows, columns = np.full(pattern.shape[0], -1, np.int64), np.full(pattern.shape[1], -1, np.int64)
    if kind == "column":
        name, columns = _best(_columns(pattern, orders, until, generator), until, fewest_columns(pattern))
    elif kind == "row":
        name, rows = _best(_columns(pattern.T, orders, until, generator), until, fewest_columns(pattern.T))
    elif kind == "bidirectional":
        return _both(pattern, orders, until, generator)
    else:
        name, columns = _best(_symmetric(pattern, kind, orders, until, generator), until, 1)
    return ColoredPattern(pattern, kind, columns, rows, name)


def _best(candidates: Iterator[_Candidate], until: float, fewest: int) -> _Candidate:
    """The one with the fewest colors, as far as time goes."""
    best: _Candidate | None = None
    for name, colors in candidates:
        if best is None or colors.max(initial=-1) < best[1].max(initial=-1):
            best = name, colors
        if best[1].max(initial=-1) + 1 <= fewest or time.monotonic() > until:
            break
    assert best is not None
    return best


def _columns(
    pattern: Pattern, orders: Sequence[Order], until: float, generator: torch.Generator | None
) -> Iterator[_Candidate]:
    """Colorings of columns: a formula is tried second, and first where the greedy pass takes long."""
    large = pattern.shape[1] >= _LARGE
    if large:
        yield from _formula(pattern, fewest_columns(pattern) + 1, time.monotonic() + _PATIENCE)
    columns, graph = lists(pattern.T), None
    for number, order in enumerate(orders):
        if needs_graph(order) and graph is None:
            if pairs_of_columns(pattern) > _PAIRS:
                continue
            graph = intersections(pattern)
        colors = greedy_columns(pattern, order_of(order, len(columns), graph, generator), columns)
        yield f"{order} order", colors
        if not number and not large:
            yield from _formula(pattern, int(colors.max(initial=-1)), until)


def _symmetric(
    pattern: Pattern, kind: Kind, orders: Sequence[Order], until: float, generator: torch.Generator | None
) -> Iterator[_Candidate]:
    if not pattern.is_symmetric:
        row, column = pattern.missing(pattern.T)[0]
        raise StructureError(f"Colorings of kind '{kind}' are of symmetric patterns.",
                             f"an entry at ({column}, {row}) and none at ({row}, {column})",
                             "pass pattern | pattern.T, or kind='column'")  # fmt: skip
    graph = without_diagonal(pattern)
    greedy: Callable[[Pattern, Indices], Indices] = greedy_star if kind == "star" else greedy_acyclic
    whole, large = _with_diagonal(pattern), pattern.shape[0] >= _LARGE  # its columns that share no row are apart in both ways
    if large:
        yield from _formula(whole, fewest_columns(whole) + 1, time.monotonic() + _PATIENCE)
    for number, order in enumerate(orders):
        colors = greedy(graph, order_of(order, graph.shape[0], graph, generator))
        yield f"{order} order", colors
        if not number and not large:
            yield from _formula(whole, int(colors.max(initial=-1)), until)


def _formula(pattern: Pattern, most: int, until: float) -> Iterator[_Candidate]:
    colors = lattice_columns(pattern, most, until)
    if colors is not None:
        yield "by formula", colors


def _with_diagonal(pattern: Pattern) -> Pattern:
    every = np.arange(pattern.shape[0])
    return pattern | Pattern.from_coordinates(every, every, pattern.shape)


def _both(pattern: Pattern, orders: Sequence[Order], until: float, generator: torch.Generator | None) -> ColoredPattern:
    """Full rows and columns have to come first, which orders by degree see to: columns in front of all rows would take one
    color, and leave every row one of its own."""
    graph, best = bipartite(pattern), None
    for order in sorted(orders, key=lambda order: not needs_graph(order)):
        columns, rows = greedy_bidirectional(pattern, order_of(order, graph.shape[0], graph, generator))
        if best is None or columns.max(initial=-1) + rows.max(initial=-1) < best[1].max(initial=-1) + best[2].max(initial=-1):
            best = order, columns, rows
        if time.monotonic() > until:
            break
    assert best is not None
    return ColoredPattern(pattern, "bidirectional", best[1], best[2], f"{best[0]} order")


def _fewest(pattern: Pattern, orders: Sequence[Order], until: float, generator: torch.Generator | None) -> ColoredPattern:
    """Columns, rows, and both at once where either way has a full row or column in its way."""
    kinds: list[Kind] = ["column", "row"]
    best = min((_of_kind(pattern, kind, orders, until, generator) for kind in kinds), key=lambda found: found.colors)
    average = pattern.nnz / max(1, min(pattern.shape))
    if best.colors > 4 * average + 4 and time.monotonic() < until + 1:
        both = _both(pattern, orders, until, generator)
        best = both if both.colors < best.colors else best
    return best
