"""Fewer colors from a coloring that is there: iterated greedy.

Culberson, Iterated greedy graph coloring and the difficulty landscape, Univ. of Alberta TR 92-07, 1992: a greedy coloring that
visits class after class of another coloring, the classes in any order, never needs more colors, since each class may have the
color of its turn; and it may need less.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from hesse.sparse.colors.columns import greedy_columns
from hesse.sparse.compressed import Indices
from hesse.sparse.pattern import Pattern

_PATIENCE = 30  # passes without a color less


def iterated_greedy(pattern: Pattern, colors: Indices, fewest: int, until: float, seed: int) -> Iterator[Indices]:
    """Recolor columns class by class, as long as there is time and hope.

    Args:
        pattern: whose columns are colored.
        colors: ``[columns]``, a valid coloring; -1 for columns without entries.
        fewest: colors at which to stop.
        until: when to give up, by `time.monotonic`.
        seed: of the random orders.

    Yields:
        Colorings with fewer and fewer colors.

    Cost: a greedy pass each, at most 30 that do not help.
    """
    generator, waiting = np.random.default_rng(seed), 0
    count = int(colors.max(initial=-1)) + 1
    while count > max(fewest, 1) and waiting < _PATIENCE and time.monotonic() < until:
        colors = greedy_columns(pattern, classes_in_turn(colors, generator))
        found = int(colors.max()) + 1
        waiting += 1
        if found < count:
            count, waiting = found, 0
            yield colors


def classes_in_turn(colors: Indices, generator: np.random.Generator) -> Indices:
    """An order that visits the vertices of one color after those of another: backwards, large classes first, or at random."""
    count = int(colors.max()) + 1
    way = generator.random()
    if way < 0.4:
        turns = np.arange(count)[::-1]
    elif way < 0.8:
        turns = np.empty(count, np.int64)
        turns[np.argsort(-np.bincount(colors[colors >= 0], minlength=count), kind="stable")] = np.arange(count)
    else:
        turns = generator.permutation(count)
    kind = np.uint8 if count < 256 else np.int64  # NumPy sorts bytes by counting
    return np.argsort(np.append(turns, count)[colors].astype(kind), kind="stable")
