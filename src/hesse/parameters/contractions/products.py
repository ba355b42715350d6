"""Products of rows with vectors: J v, and weighted sums of rows, Jᵀ u."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.parameters.contractions.uses import Parts, Use, in_cache, row_blocks, wide
from hesse.rules.forms import Contract, Lookup, inside
from hesse.rules.layers.convolution import Patches


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
    if isinstance(use, Parts):
        return torch.stack([rows_times(part, inside(v.reshape(use.whole), box)) for box, part in use.uses]).sum(0)
    return torch.cat([rows @ v.flatten().to(rows.dtype) for _, rows in row_blocks(use, v.numel())])


def weighted_sum(use: Use, u: Tensor, size: int) -> Tensor:
    """``[size]``: the sum of all rows, each times its weight ``u`` ``[n]``."""
    if isinstance(use, Contract):
        return _weighted_contract(use, u)
    if isinstance(use, Lookup):
        g = wide(use.g) * u.reshape(-1, 1, 1).to(wide(use.g).dtype)
        return g.new_zeros(use.table, g.shape[2]).index_add(0, use.index.flatten(), g.flatten(0, 1)).flatten()
    total: Tensor | None = None
    if isinstance(use, Parts):
        for box, part in use.uses:
            whole = weighted_sum(part, u, size)
            total = whole.new_zeros(use.whole) if total is None else total
            place = inside(total, box)
            place.copy_(whole.reshape(place.shape))
        assert total is not None
        return total.flatten()
    for s, rows in row_blocks(use, size):
        part = u[s].to(rows.dtype) @ rows
        total = part if total is None else total + part
    assert total is not None
    return total


def _weighted_contract(use: Contract, u: Tensor) -> Tensor:
    n, groups, t, a, b = use.dims
    if isinstance(use.right, Patches) and use.right.dtype == wide(use.left[:1]).dtype:
        return use.right.gradient(use.left[:] * u.to(use.right.dtype).reshape(-1, 1, 1, 1)).flatten()
    total: Tensor | None = None
    for s in in_cache(n, groups * t * (a + b)):
        left, right = wide(use.left[s]), wide(use.right[s])
        scale = u[s].to(left.dtype).reshape(-1, 1, 1, 1)
        if a <= b:
            left = left * scale
        else:
            right = right * scale
        part = left.movedim(0, 1).flatten(1, 2).mT @ right.movedim(0, 1).flatten(1, 2)
        total = part if total is None else total + part
    assert total is not None
    return total.flatten()
