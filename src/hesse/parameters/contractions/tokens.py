"""Tokens of lookups: cotangents of equal tokens added up, and products of cotangents of equal tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.core.batching import slices
from hesse.core.equal import first_equal
from hesse.parameters.contractions.uses import CACHE_ELEMENTS, wide
from hesse.rules.forms import Lookup

_GATHER = 64  # products of a matrix product that take about as long as a gathered one (85 on one core, 64 numbers a token)


def add_equal_tokens(use: Lookup) -> tuple[Tensor, Tensor]:
    """The cotangents of equal tokens of a sample added up; shapes do not depend on which tokens are equal.

    Returns:
        Sums ``[n t, d]``, each at the first place of its token, with zeros at the others; for each place that first one,
        ``[n t]``.

    Cost: a sort of the n t tokens and n t d additions.
    """
    n, t = use.index.shape
    g = wide(use.g).flatten(0, 1)
    if t == 1:
        return g, torch.arange(n, device=g.device)
    first = (first_equal(use.index) + t * torch.arange(n, device=g.device).unsqueeze(1)).flatten()
    return torch.zeros_like(g).index_add(0, first, g), first


def combine_equal_tokens(use: Lookup) -> tuple[Tensor, Tensor, Tensor]:
    """The cotangents of equal tokens of a sample added up: an embedding's rows without their zeros.

    Returns:
        Sums ``[u, d]``, the sample ``[u]`` and the token ``[u]`` of each; u is at most n t.

    Cost: as `add_equal_tokens`.
    """
    sums, first = add_equal_tokens(use)
    kept = (first == torch.arange(len(first), device=first.device)).nonzero().squeeze(1)
    return sums[kept], kept // use.index.shape[1], use.index.flatten()[kept]


def equal_tokens(first: Lookup, second: Lookup) -> Tensor:
    """``[n, m]``: inner products of the rows of two lookups of one table.

    Written out over the tokens that occur, or over pairs of equal tokens, whichever is less work.
    """
    n, m, d = len(first.index), len(second.index), first.g.shape[2]
    own = combine_equal_tokens(first)
    other = own if second is first else combine_equal_tokens(second)
    used, inverse = torch.unique(torch.cat([own[2], other[2]]), return_inverse=True)
    places = inverse[: len(own[2])], inverse[len(own[2]) :]
    counts = [torch.bincount(place, minlength=len(used)) for place in places]
    if _GATHER * int((counts[0] * counts[1]).sum()) < n * m * len(used):
        return _by_pairs(own, other, places, counts, n, m)
    result = own[0].new_zeros(n, m)
    width = max(1, CACHE_ELEMENTS // max((n + m) * d, 1))
    for part in slices(len(used), width):
        rows = _spread(own, places[0], part, n)
        result = result + rows @ (rows if second is first else _spread(other, places[1], part, m)).mT
    return result


def _spread(sums: tuple[Tensor, Tensor, Tensor], place: Tensor, part: slice, count: int) -> Tensor:
    """The rows over some of the tokens that occur, ``[n, tokens * d]``."""
    width = part.stop - part.start
    chosen = ((place >= part.start) & (place < part.stop)).nonzero().squeeze(1)
    flat = sums[1][chosen] * width + place[chosen] - part.start
    rows = sums[0].new_zeros(count * width, sums[0].shape[1])
    rows = rows.index_copy(0, flat, sums[0][chosen]) if sums[0].requires_grad else rows.index_copy_(0, flat, sums[0][chosen])
    return rows.reshape(count, -1)


def _by_pairs(
    own: tuple[Tensor, Tensor, Tensor],
    other: tuple[Tensor, Tensor, Tensor],
    places: tuple[Tensor, Tensor],
    counts: list[Tensor],
    n: int,
    m: int,
) -> Tensor:
    """Products over all pairs of equal tokens, listed token by token."""
    orders = [torch.argsort(place) for place in places]
    starts = [count.cumsum(0) - count for count in counts]
    pairs = counts[0] * counts[1]
    token = torch.repeat_interleave(pairs)
    offset = torch.arange(len(token), device=token.device) - (pairs.cumsum(0) - pairs)[token]
    i = orders[0][starts[0][token] + offset // counts[1][token]]
    j = orders[1][starts[1][token] + offset % counts[1][token]]
    result = own[0].new_zeros(n * m)
    for s in slices(len(token), max(1, CACHE_ELEMENTS // max(own[0].shape[1], 1))):
        products = (own[0][i[s]] * other[0][j[s]]).sum(1)
        result = result.index_add(0, own[1][i[s]] * m + other[1][j[s]], products)
    return result.reshape(n, m)
