"""`coloring`: the fewest products that tell all entries of a matrix apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch

from hesse.core.errors import StructureError
from hesse.sparse.colored import KINDS, ColoredPattern, Kind, asymmetry
from hesse.sparse.colors.columns import fewest_columns
from hesse.sparse.colors.hubs import fullest
from hesse.sparse.colors.orders import ORDERS, Order
from hesse.sparse.colors.plans import Tries, best_both, best_columns, best_symmetric
from hesse.sparse.colors.search import Search
from hesse.sparse.pattern import Pattern

_TWO_PASSES = 2  # colors that both ways at once have to save, since they take a forward and a reverse pass
_FEW = 4  # colors that no other way is sought for


def coloring(
    pattern: Any,
    *,
    kind: Kind | Literal["auto"] = "auto",
    orders: Sequence[Order] = ORDERS,
    seconds: float = 0.03,
    generator: torch.Generator | None = None,
) -> ColoredPattern:
    """Color a pattern, several ways, and keep the one with the fewest colors.

    Args:
        pattern: a `Pattern`, or a matrix that has one (see `Pattern.of`).
        kind: "column" (for forward mode), "row" (for reverse mode), "bidirectional" (both at once), "star" or "acyclic" (of a
            symmetric matrix), or "auto": the fewest colors of the first three. At equal counts columns, as forward mode needs
            no memory for a tape; both at once only where this saves at least two products, as it takes two passes. Of a
            Hessian's pattern "auto" does not know that it is symmetric in its values too: "star" needs fewer colors.
            "acyclic" needs fewer still (2 for 3 on a tridiagonal matrix, 6 for 11 on a band of half width 5), but its entries
            follow one from the other along paths as long as half the matrix, 30 microseconds a step, and with rounding errors
            that add up: for products that cost more than that.
        orders: of the vertices, tried in turn.
        seconds: for the search of fewer colors after the first coloring, which always runs to its end ("star" and "acyclic"
            take up to 0.2 for it); more than 0.03 pays where the derivative is needed many times, and the count is not at the
            bound that the fullest row sets.
        generator: for random orders; without one, the same at every call.

    Returns:
        The colors, with the pattern.

    Raises:
        StructureError: an unknown kind or order, seconds that are no number from 0 on, a symmetric coloring of a pattern that
            is not symmetric.

    Cost: no gradients. The first coloring takes about 0.1 microseconds an entry.
    """
    pattern = Pattern.of(pattern)
    if kind not in (*KINDS, "auto"):
        raise StructureError(f"kind is one of {', '.join(map(repr, (*KINDS, 'auto')))}.", repr(kind), "pass one of these")
    _check_options(orders, seconds, generator)
    tries = Tries(tuple(orders), seconds, generator)
    if kind in ("star", "acyclic") and not pattern.is_symmetric:
        raise StructureError(f"Colorings of kind '{kind}' are of symmetric patterns.", asymmetry(pattern),
                             "pass pattern | pattern.T, or kind='column'")  # fmt: skip
    kind, best = _fewest(pattern, tries) if kind == "auto" else (kind, _search(pattern, kind, tries))
    none = [np.full(size, -1, np.int64) for size in pattern.shape]
    columns, rows = (none[1], best.colors) if kind == "row" else (best.colors, none[0])
    return ColoredPattern(pattern, kind, columns, best.row_colors if kind == "bidirectional" else rows, best.name)


def _check_options(orders: Sequence[Order], seconds: float, generator: torch.Generator | None) -> None:
    listed = not isinstance(orders, str) and isinstance(orders, Iterable)
    for order in orders if listed else [orders]:
        if not listed or order not in ORDERS:
            found, remedy = repr(order), f"pass orders={ORDERS!r} or some of these"
            raise StructureError(f"Orders are {', '.join(map(repr, ORDERS))}.", found, remedy)
    number = isinstance(seconds, (int, float, np.number)) and not isinstance(seconds, bool)
    if not number or not 0 <= seconds < float("inf"):
        raise StructureError("A search takes a number of seconds from 0 on.", f"seconds={seconds!r}", "pass seconds=0.03")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise StructureError("Random orders are drawn by a torch.Generator.", f"generator={generator!r}",
                             "pass torch.Generator(), or None")  # fmt: skip


def _search(pattern: Pattern, kind: Kind, tries: Tries) -> Search:
    if kind == "bidirectional":
        return best_both(pattern, tries)
    if kind in ("star", "acyclic"):
        return best_symmetric(pattern, kind == "acyclic", tries)
    return best_columns(pattern if kind == "column" else pattern.T, tries)


def _fewest(pattern: Pattern, tries: Tries) -> tuple[Kind, Search]:
    """Columns; rows if they can need fewer colors; and both at once where full rows and full columns are in the way."""
    kind, best = "column", best_columns(pattern, tries)
    if best.count > fewest_columns(pattern.T) and not pattern.is_symmetric:
        rows = best_columns(pattern.T, tries)
        kind, best = ("row", rows) if rows.count < best.count else (kind, best)
    if best.count <= _FEW:
        return kind, best
    longest = min(fewest_columns(pattern), fewest_columns(pattern.T))
    length, guess = fullest(pattern, pattern.T)
    if length < longest and guess + _TWO_PASSES <= best.count:
        both = best_both(pattern, tries)
        kind, best = ("bidirectional", both) if both.count + _TWO_PASSES <= best.count else (kind, best)
    return kind, best
