"""Rows times a random projection, without the rows of the whole parameter.

A projection of independent columns has no structure that the factors of a row could use: for factors ``z[t, a]`` and
``g[t, b]`` and k dimensions, the rows take ``T a b`` multiplications a sample and their product ``a b k``, where contracting
the projection with one factor first would take ``T a b k``. So rows are formed, some columns of some samples at a time, and
each column of the projection is made once for all samples of a part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.core.batching import slices
from hesse.operators.projections import RandomProjection
from hesse.parameters.contractions.tokens import combine_equal_tokens
from hesse.parameters.contractions.uses import CACHE_ELEMENTS, Mixed, Parts, Use, flat_rows, in_cache, wide
from hesse.rules.forms import Contract, Form, Lookup, Part

_SAMPLES = 256  # worked on at a time: enough that making the projection's columns is cheap beside the products
_GRAINS = 8  # blocks of columns that belong together, in a piece of the rows: of the two at its ends only parts are in it


@dataclass(frozen=True, eq=False)
class Columns:
    """Where the elements of a parameter are among the columns of the projection.

    Attributes:
        start: the column of the first element, where all follow.
        places: maps element numbers to columns; None where all follow.
    """

    start: int = 0
    places: Callable[[Tensor], Tensor] | None = None

    def part(self, first: int, stop: int, device: torch.device) -> slice | Tensor:
        """The columns of consecutive elements."""
        if self.places is None:
            return slice(self.start + first, self.start + stop)
        return self.places(torch.arange(first, stop, device=device))

    def of(self, elements: Tensor) -> Tensor:
        """The columns of some elements."""
        return elements + self.start if self.places is None else self.places(elements)

    def inside(self, box: Sequence[tuple[int, int]], whole: Sequence[int]) -> Columns:
        """The columns of the elements of a box of the parameter."""
        sides = [stop - start for start, stop in box]

        def places(elements: Tensor) -> Tensor:
            flat, stride, left = torch.zeros_like(elements), 1, elements
            for (start, _), side, size in reversed(list(zip(box, sides, whole, strict=True))):
                flat = flat + (start + left % side) * stride
                left, stride = left // side, stride * size
            return self.of(flat)

        return Columns(0, places)


def projected(use: Use | Form, P: RandomProjection, columns: Columns, elements: int) -> Tensor:
    """``[n, k]``: the rows of one parameter through a projection, in the projection's working dtype.

    Args:
        use: the rows.
        P: the projection.
        columns: which of its columns belong to the parameter.
        elements: of rows that may be written out at a time.
    """
    if isinstance(use, Contract):
        return torch.cat([_contract(use, s, P, columns, elements) for s in slices(use.count, _SAMPLES)])
    if isinstance(use, Lookup):
        return _lookup(use, P, columns)
    if isinstance(use, Parts):
        return _total([projected(part, P, columns.inside(box, use.whole), elements) for box, part in use.uses])
    if isinstance(use, Mixed):
        return _total([projected(form, P, columns, elements) for form in use.forms])
    if isinstance(use, Part):
        return projected(use.form, P, columns.inside(use.box, use.whole), elements)
    size = flat_rows(use, slice(0, 1)).shape[1]
    parts = []
    for s in slices(use.count, max(1, elements // max(size, 1))):
        rows = flat_rows(use, s)
        parts.append(P.times(rows, columns.part(0, size, rows.device)))
    return torch.cat(parts)


def _contract(use: Contract, s: slice, P: RandomProjection, columns: Columns, elements: int) -> Tensor:
    """The rows of some samples, whole groups at a time where these are small, else some lines of one group."""
    _, groups, t, a, b = use.dims
    n = s.stop - s.start
    if t == 1:  # else factors may be costly to cut
        elements = min(elements, max(CACHE_ELEMENTS, _GRAINS * n * P.grain))
    parts = []
    for group in slices(groups, max(1, elements // (n * a * b))):
        lines = max(1, elements // (n * b)) if group.stop - group.start == 1 else a
        for line in slices(a, lines):
            rows = _rows(use, s, group, line)
            first = (group.start * a + line.start) * b
            parts.append(P.times(rows, columns.part(first, first + rows.shape[1], rows.device)))
    return _total(parts)


def _rows(use: Contract, s: slice, group: slice, line: slice) -> Tensor:
    """Some groups' lines of the rows of some samples, ``[n, G * lines * b]``; factors are cut for a few samples at a time."""
    _, groups, t, a, b = use.dims
    if t == 1:
        left, right = (wide(rows[s][:, group]) for rows in (use.left, use.right))
        return (left[..., line].squeeze(2).unsqueeze(3) * right).flatten(1)
    parts = []
    for few in in_cache(s.stop - s.start, groups * t * (a + b)):
        some = slice(s.start + few.start, s.start + few.stop)
        left, right = (wide(rows[some][:, group]) for rows in (use.left, use.right))
        parts.append((left[..., line].mT @ right).flatten(1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _lookup(use: Lookup, P: RandomProjection, columns: Columns) -> Tensor:
    """Only the tokens that occur."""
    sums, sample, token = combine_equal_tokens(use)
    elements = token[:, None] * sums.shape[1] + torch.arange(sums.shape[1], device=token.device)
    return P.times_pieces(sums, sample, columns.of(elements), use.count)


def _total(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def rows_at_once(budget: int, itemsize: int) -> int:
    """How many elements of rows are written out at a time: a number that only a small budget changes."""
    return min(2**23, 1 << max(math.floor(math.log2(max(budget // (8 * itemsize), 1))), 10))
