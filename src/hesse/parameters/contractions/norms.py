"""Squared norms of rows, without the rows."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.parameters.contractions.uses import Use, combine_equal_tokens, flat_rows, in_cache, samples_of, wide
from hesse.rules.forms import Contract, Lookup


def squared_norms(use: Use, size: int) -> Tensor:
    """``[n]``: the squared 2-norm of each row of a parameter with `size` elements.

    A `Contract` with one position is a product of two norms; with t positions the cheaper of t x t products of positions
    (Goodfellow 2015; Rochette, Manoel, Tramel 2019) and of the rows themselves, a few at a time.
    """
    if isinstance(use, Contract):
        return _contract(use)
    if isinstance(use, Lookup):
        total, first = combine_equal_tokens(use)
        return (total.square().sum(2) * first).sum(1)
    parts = [flat_rows(use, s).square().sum(1) for s in in_cache(samples_of(use), size)]
    return torch.cat(parts)


def _contract(use: Contract) -> Tensor:
    n, groups, t, a, b = use.dims
    by_positions = t * (a + b) < a * b
    work = groups * (t * t + t * (a + b) if by_positions else a * b + t * (a + b))
    parts = []
    for s in in_cache(n, work):
        left, right = wide(use.left[s]), wide(use.right[s])
        if t == 1:
            parts.append((left.square().sum(3) * right.square().sum(3)).sum((1, 2)))
        elif by_positions:
            parts.append(((left @ left.mT) * (right @ right.mT)).sum((1, 2, 3)))
        else:
            parts.append((left.mT @ right).square().sum((1, 2, 3)))
    return torch.cat(parts)
