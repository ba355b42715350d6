"""Colors by formula where columns lie on a lattice: stencils on a line, a square or a box, with one or more unknowns a point.

A column of number ``j = x + N y`` gets the color ``(x + a y) mod k``, and with more strides ``(x + a y + b z) mod k``; Goldfarb
and Toint, Optimal estimation of Jacobian and Hessian matrices that arise in finite difference calculations, Math. Comp. 1984,
found such colorings to be the optimal ones of common stencils. Which strides there are is read off a few rows; what a formula
gives is checked on every entry, so that nothing depends on the guess. Where a formula is right but for some seams (a torus
whose sides are no multiples of k), its classes are a good order for a greedy coloring.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from hesse.sparse.colors.columns import are_columns_apart, fewest_columns
from hesse.sparse.compressed import Indices, Marks
from hesse.sparse.pattern import Pattern

_ROWS, _STRIDES, _LENGTH = 96, 10, 64  # rows that are looked at, axes that are tried, entries of a row
_COMMON, _MOST = 0.1, 0.7  # a distance is common at this share of rows; a stencil has this share of common ones
_USUAL = 0.4  # of the most common one's rows: distances that are no seams even of a small torus
_SEAMS, _NEARLY = 0.25, 3  # rows that may go wrong for an order, and orders that are returned
_CHAINS, _COMBINATIONS, _BITS = 3, 1 << 10, 62
_MORE, _TRIED, _CHECKS = 5, 32, 2  # colors above the bound, and formulas of a kind that are looked at, and on every entry


class Formula(NamedTuple):
    """The colors ``(rest + sum of factor * place) mod modulus``, the places of a number along strides, the longest first."""

    modulus: int
    strides: tuple[int, ...]
    factors: tuple[int, ...]

    def __call__(self, columns: Indices) -> Indices:
        *places, total = _places(self.strides, columns)
        for factor, place in zip(self.factors, places, strict=True):
            total = total + factor * place
        return total - total // self.modulus * self.modulus  # twice as fast as NumPy's %


def lattice_columns(pattern: Pattern, most: int) -> tuple[Indices | None, list[Indices]]:
    """Color columns by the first formula that is right, with the fewest colors first.

    Args:
        pattern: whose columns are colored.
        most: colors that would still be an improvement.

    Returns:
        ``[columns]`` colors, or None where no formula was found; and colors of formulas that are right but for a few rows.

    Cost: 1 to 10 ms, and a pass over the entries for a formula that the rows of the sample do not refute, at most two.
    """
    even = _rows_of(pattern, _evenly(pattern.shape[0]))
    common, distances = _distances(even)
    fewest, near, checks = fewest_columns(pattern), [], 0
    if not fewest or not len(distances):
        return None, []
    chains = _chains([int(d) for d in common if d > 1][:_STRIDES], distances)
    seams = _rows_of(pattern, _seams(pattern.shape[0], sorted({stride for chain in chains for stride in chain})))
    for count in range(fewest, min(most, fewest + _MORE, _BITS) + 1):
        best = 1.0, Formula(count, (), ())
        for chain in chains:
            for wrong, formula in _tried(count, chain, distances, seams):
                inside = float(_clashes(formula(even.indices), even).mean())
                best = min(best, (inside, formula))
                if not wrong and not inside and checks < _CHECKS:
                    checks += 1
                    if are_columns_apart(pattern, colors := formula(np.arange(pattern.shape[1]))):
                        return _without_empty(pattern, colors), _orders(near, pattern.shape[1])
        if best[0] < _SEAMS:
            near.append(best)
    return None, _orders(near, pattern.shape[1])


def _orders(near: list[tuple[float, Formula]], columns: int) -> list[Indices]:
    return [formula(np.arange(columns)) for _, formula in sorted(near)[:_NEARLY]]


def _evenly(rows: int) -> Indices:
    return np.unique(np.linspace(0, max(0, rows - 1), min(rows, _ROWS)).astype(np.int64))


def _seams(rows: int, strides: list[int]) -> Indices:
    """The first and last rows, and those around multiples of strides, where lattices of a torus close."""
    ends = [np.arange(min(rows, 8)), np.arange(max(0, rows - 8), rows)]
    around = [stride * np.arange(1, 4)[:, None] + np.arange(-2, 2) for stride in strides]
    found = np.concatenate([*ends, *(a.ravel() for a in around)])
    return np.unique(found[found < rows])


def _rows_of(pattern: Pattern, rows: Indices) -> Pattern:
    lengths = np.diff(pattern.indptr)[rows]
    ends = np.concatenate([[0], np.cumsum(lengths)])
    places = np.arange(ends[-1]) + np.repeat(pattern.indptr[rows] - ends[:-1], lengths)
    return Pattern.trusted((len(rows), pattern.shape[1]), ends, pattern.indices[places])


def _distances(sample: Pattern) -> tuple[Indices, Indices]:
    """Distances between columns of a row, the most common first, and the usual ones; none where rows are no stencil."""
    parts = []
    for row in np.split(sample.indices, sample.indptr[1:-1]):
        if 1 < len(row) <= _LENGTH:
            parts.append(np.unique(row[None, :] - row[:, None]))
    none = np.zeros(0, np.int64)
    if not parts:
        return none, none
    found, counts = np.unique(np.concatenate(parts), return_counts=True)
    found, counts = found[found > 0], counts[found > 0]
    common = counts > _COMMON * len(parts)
    if counts[common].sum() < _MOST * counts.sum():
        return none, none
    return found[common][np.argsort(-counts[common], kind="stable")], found[counts > _USUAL * counts.max()]


def _places(strides: tuple[int, ...], numbers: Indices, *, nearest: bool = False) -> list[Indices]:
    """Whole strides in numbers, the longest first, and the rest; the nearest number of strides if what is behind counts."""
    parts, rest = [], numbers
    for stride in strides:
        place = (rest + stride // 2) // stride if nearest else rest // stride
        rest = rest - place * stride
        parts.append(place)
    return [*parts, rest]


def _chains(strides: list[int], distances: Indices) -> list[tuple[int, ...]]:
    """Strides that divide each other, first those that make the distances short steps along few axes."""
    ordered = sorted(strides, reverse=True)
    chains = [chain for size in range(4) for chain in itertools.combinations(ordered, size)
              if all(high % low == 0 for high, low in itertools.pairwise(chain))]  # fmt: skip
    steps = {chain: sum(np.abs(part).mean() for part in _places(chain, distances, nearest=True)) for chain in chains}
    return sorted(chains, key=lambda chain: (steps[chain], len(chain)))[:_CHAINS]


def _tried(count: int, chain: tuple[int, ...], distances: Indices, sample: Pattern) -> list[tuple[float, Formula]]:
    """Formulas that tell columns at all usual distances apart, with the share of seams that it fails on: those
    that fail on none, or the best one."""
    if count ** len(chain) > _COMBINATIONS:
        return []
    factors = np.indices((count,) * len(chain)).reshape(len(chain), count ** len(chain)).T
    *steps, rest = _places(chain, distances, nearest=True)
    moved = factors @ np.array(steps, np.int64).reshape(len(chain), len(distances)) + rest
    factors = factors[(moved % count != 0).all(1)]
    *places, rest = _places(chain, sample.indices)
    wrong = _clashes((factors @ np.array(places, np.int64).reshape(len(chain), sample.nnz) + rest) % count, sample).mean(1)
    best = np.argsort(wrong, kind="stable")[: max(1, min(_TRIED, np.count_nonzero(wrong == 0)))]
    return [(float(wrong[place]), Formula(count, chain, tuple(factors[place].tolist()))) for place in best]


def _clashes(colors: Indices, sample: Pattern) -> Marks:
    """``[..., rows with entries]`` bools: two entries of one color, so that a sum of powers of two is not their union."""
    bits, starts = np.left_shift(1, colors), sample.indptr[:-1][np.diff(sample.indptr) > 0]
    return np.add.reduceat(bits, starts, -1) != np.bitwise_or.reduceat(bits, starts, -1)


def _without_empty(pattern: Pattern, colors: Indices) -> Indices:
    """No color where a column has no entries; the others numbered without gaps."""
    used = np.diff(pattern.T.indptr) > 0
    if used.all():
        return colors
    taken = np.zeros(int(colors.max(initial=0)) + 1, bool)
    taken[colors[used]] = True
    return np.where(used, (np.cumsum(taken) - 1)[colors], -1)
