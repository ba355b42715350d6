"""Colors by formula where columns lie on a lattice: stencils on a line, a square or a box, with one or more unknowns a point.

A column of number ``j = x + N y`` gets the color ``(x + a y) mod k``, and with two strides ``(x + a y + b z) mod k``; Goldfarb
and Toint, Optimal estimation of Jacobian and Hessian matrices that arise in finite difference calculations, Math. Comp. 1984,
found such colorings to be the optimal ones of common stencils. Which strides there are is read off a few rows; what a formula
gives is checked on every entry, so that nothing depends on the guess.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import numpy as np

from hesse.sparse.colors.columns import are_columns_apart, fewest_columns
from hesse.sparse.pattern import Indices, Pattern

_ROWS, _STRIDES = 192, 12
_Formula = tuple[int, tuple[tuple[int, int], ...]]  # k, and a stride with its factor for each further axis


def lattice_columns(pattern: Pattern, most: int, until: float = float("inf")) -> Indices | None:
    """Color columns by the first formula that is right, with the fewest colors first.

    Args:
        pattern: whose columns are colored.
        most: colors that would still be an improvement.
        until: when to give up, by `time.monotonic`.

    Returns:
        ``[columns]``, colors; None where no formula was found.

    Cost: a pass over the entries for each formula that some rows do not refute, usually one or two.
    """
    fewest = fewest_columns(pattern)
    if not fewest:
        return None
    sample = _some_rows(pattern)
    for count in range(fewest, most + 1):
        for formula in _formulas(sample, count):
            if time.monotonic() > until:
                return None
            if _tells_apart(formula, sample):
                colors = _colors(formula, np.arange(pattern.shape[1]))
                if are_columns_apart(pattern, colors):
                    return _without_empty(pattern, colors)
    return None


def _tells_apart(formula: _Formula, sample: Pattern) -> bool:
    """Whether no row has two entries of one color."""
    keys = sample.rows * formula[0] + _colors(formula, sample.indices)
    return int(np.bincount(keys).max(initial=0)) < 2


def _colors(formula: _Formula, columns: Indices) -> Indices:
    """The colors of columns."""
    count, axes = formula
    rest, total = columns, np.zeros(len(columns), np.int64)
    for stride, factor in sorted(axes, reverse=True):
        place, rest = np.divmod(rest, stride)
        total += factor * place
    return (total + rest) % count


def _formulas(sample: Pattern, count: int) -> Iterator[_Formula]:
    """Formulas with a number of colors: along a line, then with one stride, then with two."""
    yield count, ()
    strides = _strides(sample)
    for stride, factor in itertools.product(strides, range(count)):
        yield count, ((stride, factor),)
    for (low, high), a, b in itertools.product(itertools.combinations(strides, 2), range(count), range(count)):
        if high % low == 0:
            yield count, ((low, a), (high, b))


def _some_rows(pattern: Pattern) -> Pattern:
    """The fullest rows, and others at regular distances."""
    lengths = np.diff(pattern.indptr)
    rows = np.unique(np.concatenate([np.argsort(-lengths, kind="stable")[:_ROWS // 2] if len(lengths) < 1 << 16 else [],
                                     np.linspace(0, len(lengths) - 1, _ROWS).astype(np.int64)]).astype(np.int64))  # fmt: skip
    ends = np.concatenate([[0], np.cumsum(lengths[rows])])
    indices = np.concatenate([pattern.indices[pattern.indptr[row] : pattern.indptr[row + 1]] for row in rows.tolist()])
    return Pattern((len(rows), pattern.shape[1]), ends, indices)


def _strides(sample: Pattern) -> list[int]:
    """Distances between columns that share a row, the most common first, as candidates for the length of an axis."""
    distances: list[Indices] = []
    for start, end in zip(sample.indptr, sample.indptr[1:], strict=False):
        row = sample.indices[start:end]
        if 1 < len(row) <= 64:
            distances.append((row[:, None] - row[None, :])[np.tril_indices(len(row), -1)])
    if not distances:
        return []
    found, counts = np.unique(np.concatenate(distances), return_counts=True)
    common = [int(d) for d in found[np.argsort(-counts, kind="stable")] if d > 1]
    return common[:_STRIDES]


def _without_empty(pattern: Pattern, colors: Indices) -> Indices:
    """No color where a column has no entries; the others numbered without gaps."""
    used = np.bincount(pattern.indices, minlength=pattern.shape[1]) > 0
    names, numbers = np.unique(colors[used], return_inverse=True)
    del names
    result = np.full(len(colors), -1, np.int64)
    result[used] = numbers
    return result
