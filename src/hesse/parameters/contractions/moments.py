"""Kronecker moments: the second moments of the two factors of a layer's rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hesse.core.batching import slices
from hesse.core.errors import UnsupportedError
from hesse.parameters.contractions.second_moment import SecondMoment
from hesse.parameters.contractions.squares import summed_squares
from hesse.parameters.contractions.uses import CACHE_ELEMENTS, Use, flat_rows, in_cache, row_blocks, wide
from hesse.rules.forms import Contract, Dense, Lookup

Approximation = Literal["expand", "reduce"]
Kind = Literal["kronecker", "exact", "blocks", "diagonal"]

WIDEST_EXACT = (
    2048  # numbers of a parameter without factors, beyond which its matrix is cut into blocks: eigenvectors take seconds
)


@dataclass(frozen=True, eq=False)
class Moments:
    """``sum_n j[n] j[n]^T`` of one parameter, approximated by ``left[G] (x) right[G] / terms`` in every group G.

    The rows of the parameter, of shape ``[G, a, b]`` (its own shape otherwise viewed), have factors of a and b numbers. Moments
    of several batches (or roots) together are sums of all three attributes.

    Attributes:
        left: ``[G, a, a]``, the sum over samples (and positions) of outer products of the first factor with itself; ``[G, a]``,
            its diagonal, for an embedding table and where the whole would be too large.
        right: ``[G, b, b]`` or ``[G, b]``, of the second factor.
        terms: how many outer products were added up.
        kind: "kronecker"; for parameters without two factors (biases, norm affines) "exact", where left is ``[1, 1, 1]``;
            "blocks", the exact matrix of every output channel, where left is ``[G, 1, 1]``; or "diagonal", where left is
            ``[1, size]`` and right ``[1, 1]``.
    """

    left: Tensor
    right: Tensor
    terms: float
    kind: Kind

    def dense(self) -> Tensor:
        """The matrix ``[size, size]`` written out."""
        left, right = (torch.diag_embed(side) if side.ndim == 2 else side for side in (self.left, self.right))
        return torch.block_diag(*(torch.kron(a, b) for a, b in zip(left, right, strict=True))) / (self.terms or 1)

    def __repr__(self) -> str:
        return f"Moments({self.kind}: {tuple(self.left.shape)} (x) {tuple(self.right.shape)})"


class Known:
    """The second moments computed last: a bias has its weight's factor as its rows.

    What they were computed from is held on to, so that equal addresses mean equal numbers.
    """

    def __init__(self) -> None:
        self._last: list[tuple[Tensor, Tensor]] = []

    def product(self, flat: Tensor) -> Tensor:
        """``flat.T @ flat`` for a matrix ``[n, a]``."""
        for seen, product in self._last:
            if seen.data_ptr() == flat.data_ptr() and seen.shape == flat.shape and seen.stride() == flat.stride():
                return product
        total = SecondMoment()
        total.add(flat)
        self._last = [*self._last[-1:], (flat, total.result())]
        return self._last[-1][1]


def moments(
    use: Use,
    name: str,
    approximation: Approximation,
    widest: int | None = None,
    known: Known | None = None,
    channels: int = 1,
) -> Moments:
    """The Kronecker moments of one parameter (Martens, Grosse 2015; shared weights: Eschenhagen et al. 2023).

    With n samples and t shared positions, "expand" takes all n t positions as samples, "reduce" adds up positions first. Both
    are exact for t = 1 and one sample. Tokens of a table without a cotangent (padding) are not counted; samples and positions
    of other layers are, whether a cotangent reaches them or not.

    Args:
        use, name, approximation: the parameter's use, its name, and which approximation.
        widest: a factor with more numbers gives its diagonal only; rows that are no products of factors give their matrix if
            they are no wider (nor than 2048 numbers), else its blocks along the first axis if these are not, else its
            diagonal. None: factors are always whole, and rows of several kinds are refused.
        known: what was computed for other parameters of the same root.
        channels: the length of the parameter's first axis, if it has more axes.

    Raises:
        UnsupportedError: uses of different kinds in one parameter, which have no common factors.
    """
    if isinstance(use, Contract):
        return _contract(use, approximation, widest, known or Known())
    if isinstance(use, Lookup) and (approximation == "expand" or widest is None):
        return _lookup(use, approximation)
    if widest is not None:
        return _without_factors(use, widest, known or Known(), channels)
    if isinstance(use, Dense):
        rows = flat_rows(use, slice(None))
        return Moments(rows.new_ones(1, 1, 1), (rows.mT @ rows).unsqueeze(0), 1.0, "exact")
    raise UnsupportedError(
        "moments() needs rows that are products of two factors.",
        f"'{name}' is used in several ways ({type(use).__name__.lower()} rows)",
        "leave it out: J.select(params=...).moments(), or use sum_of_squares() for it",
    )


def _contract(use: Contract, approximation: Approximation, widest: int | None, known: Known) -> Moments:
    n, groups, t, a, b = use.dims
    count = float(n * t if approximation == "expand" else n)
    if t == groups == 1 and (widest is None or max(a, b) <= widest):
        left, right = (known.product(wide(rows[:]).flatten(1)).unsqueeze(0) for rows in (use.left, use.right))
        return Moments(left, right, count, "kronecker")
    sums = [_Side(a, widest), _Side(b, widest)]
    for s in in_cache(n, groups * t * (a + b)):
        parts = [wide(rows[s]) for rows in (use.left, use.right)]
        if approximation == "reduce":
            parts = [parts[0].mean(2, keepdim=True), parts[1].sum(2, keepdim=True)]
        for side, part in zip(sums, parts, strict=True):
            side.add(part)
    return Moments(sums[0].result(), sums[1].result(), count, "kronecker")


class _Side:
    """The second moment of one factor by group, ``[G, a, a]`` of rows ``[n, G, t, a]``; its diagonal if a is too wide."""

    def __init__(self, width: int, widest: int | None) -> None:
        self._is_wide = widest is not None and width > widest
        self._squares: Tensor | None = None
        self._groups: list[SecondMoment] = []

    def add(self, part: Tensor) -> None:
        if self._is_wide:
            squares = part.square().sum((0, 2))
            self._squares = squares if self._squares is None else self._squares + squares
            return
        self._groups = self._groups or [SecondMoment() for _ in range(part.shape[1])]
        for total, rows in zip(self._groups, part.unbind(1), strict=True):
            total.add(rows.flatten(0, 1))

    def result(self) -> Tensor:
        if self._squares is not None:
            return self._squares
        return torch.stack([total.result() for total in self._groups])


class LookupMoments:
    """The moments of a table's lookups over the roots of one batch, which look up the same tokens.

    A token is counted once a root if any root reaches it, so that its weight does not depend on how many do.
    """

    def __init__(self, use: Lookup) -> None:
        self._use, self._roots = use, 0
        self._right = torch.zeros(use.g.shape[2], use.g.shape[2], dtype=wide(use.g).dtype, device=use.g.device)
        self._live = torch.zeros_like(use.index, dtype=torch.bool)

    def add(self, use: Lookup) -> None:
        """Add a root."""
        n, t, d = use.g.shape
        for s in slices(n, max(1, CACHE_ELEMENTS // max(t * d, 1))):
            g = wide(use.g[s]).flatten(0, 1)
            self._right = self._right + g.mT @ g
        self._live |= (use.g != 0).any(2)
        self._roots += 1

    def result(self) -> Moments:
        """The moments of all roots together."""
        live = self._live.flatten().to(self._right.dtype)
        counts = self._right.new_zeros(self._use.table).index_add(0, self._use.index.flatten(), live) * self._roots
        return Moments(counts.unsqueeze(0), self._right.unsqueeze(0), float(live.sum()) * self._roots, "kronecker")


def _lookup(use: Lookup, approximation: Approximation) -> Moments:
    if approximation == "reduce":
        raise UnsupportedError(
            "The 'reduce' moments of an embedding table are a dense matrix of its tokens.",
            f"{use.table} tokens",
            "use approximation='expand'",
        )
    sums = LookupMoments(use)
    sums.add(use)
    return sums.result()


def _without_factors(use: Use, widest: int, known: Known, channels: int) -> Moments:
    """The matrix of rows that are no products; its blocks along the first axis if it is large; or its diagonal."""
    size, exact = use.dense(slice(0, 1)).numel(), min(widest, WIDEST_EXACT)
    if isinstance(use, Dense) and size <= exact:
        total = known.product(flat_rows(use, slice(None)))
        return Moments(total.new_ones(1, 1, 1), total.unsqueeze(0), 1.0, "exact")
    groups = 1 if size <= exact else channels
    if size // groups > exact or size * (size // groups) > WIDEST_EXACT**2:
        squares = summed_squares(use, size)
        return Moments(squares.unsqueeze(0), squares.new_ones(1, 1), 1.0, "diagonal")
    side = _Side(size // groups, None)
    for _, rows in row_blocks(use, size):
        side.add(rows.reshape(len(rows), groups, 1, -1))
    total = side.result()
    return Moments(total.new_ones(groups, 1, 1), total, 1.0, "exact" if groups == 1 else "blocks")


def add_moments(parts: list[Moments]) -> Moments:
    """The moments of the rows of several roots, or several batches, together."""
    first = parts[0]
    if len(parts) == 1:
        return first
    left, right = first.left, first.right
    for other in parts[1:]:
        left, right = left + other.left, right + other.right
    return Moments(left, right, sum(m.terms for m in parts), first.kind)
