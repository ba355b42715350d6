"""Products of rows with vectors: J v, and weighted sums of rows, Jᵀ u."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.parameters.contractions.uses import Use, flat_rows, in_cache, samples_of, wide
from hesse.rules.forms import Contract, Lookup


def rows_times(use: Use, v: Tensor) -> Tensor:
    """``[n]``: the inner product of every row with a tensor of the parameter's shape."""
    if isinstance(use, Contract):
        n, groups, t, a, b = use.dims
        weight = v.reshape(groups, a, b)
        parts = []
        for s in in_cache(n, groups * t * (a + b)):
            left, right = wide(use.left[s]), wide(use.right[s])
            parts.append((left @ weight.to(left.dtype) * right).sum((1, 2, 3)))
        return torch.cat(parts)
    if isinstance(use, Lookup):
        g = wide(use.g)
        return (v.reshape(use.table, -1).to(g.dtype)[use.index] * g).sum((1, 2))
    parts = []
    for s in in_cache(samples_of(use), v.numel()):
        rows = flat_rows(use, s)
        parts.append(rows @ v.flatten().to(rows.dtype))
    return torch.cat(parts)


def weighted_sum(use: Use, u: Tensor, size: int) -> Tensor:
    """``[size]``: the sum of all rows, each times its weight ``u`` ``[n]``."""
    if isinstance(use, Contract):
        n, groups, t, a, b = use.dims
        total: Tensor | None = None
        for s in in_cache(n, groups * t * (a + b)):
            left, right = wide(use.left[s]), wide(use.right[s])
            scaled = left * u[s].to(left.dtype).reshape(-1, 1, 1, 1)
            part = scaled.movedim(0, 1).flatten(1, 2).mT @ right.movedim(0, 1).flatten(1, 2)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total.flatten()
    if isinstance(use, Lookup):
        g = wide(use.g) * u.reshape(-1, 1, 1)
        return g.new_zeros(use.table, g.shape[2]).index_add_(0, use.index.flatten(), g.flatten(0, 1)).flatten()
    total = None
    for s in in_cache(samples_of(use), size):
        rows = flat_rows(use, s)
        part = u[s].to(rows.dtype) @ rows
        total = part if total is None else total + part
    assert total is not None
    return total
