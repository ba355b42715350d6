"""Squared rows, summed over samples: the diagonal of JᵀJ."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.parameters.contractions.uses import Use, combine_equal_tokens, flat_rows, in_cache, samples_of, wide
from hesse.rules.forms import Contract, Lookup


def summed_squares(use: Use, size: int) -> Tensor:
    """``[size]``: the squares of the rows of a parameter, summed over samples."""
    if isinstance(use, Contract):
        return _contract(use).flatten()
    if isinstance(use, Lookup):
        total, first = combine_equal_tokens(use)
        squares = total.square() * first.unsqueeze(2)
        table = squares.new_zeros(use.table, squares.shape[2])
        return table.index_add_(0, use.index.flatten(), squares.flatten(0, 1)).flatten()
    return torch.stack([flat_rows(use, s).square().sum(0) for s in in_cache(samples_of(use), size)]).sum(0)


def _contract(use: Contract) -> Tensor:
    n, groups, t, a, b = use.dims
    if t == 1:
        left, right = wide(use.left[:]).squeeze(2).square(), wide(use.right[:]).squeeze(2).square()
        return left.movedim(0, 2) @ right.movedim(0, 1)
    total: Tensor | None = None
    for s in in_cache(n, groups * (a * b + t * (a + b))):
        part = (wide(use.left[s]).mT @ wide(use.right[s])).square_().sum(0)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total
