"""Inner products of rows, without the rows of all samples at once."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.core.batching import slices
from hesse.parameters.contractions.uses import CACHE_ELEMENTS, Use, flat_rows, in_cache, samples_of, wide
from hesse.rules.forms import Contract, Lookup

_BLOCK_ELEMENTS = 2**23  # of the rows, written for all samples but a part of the parameter


def gram(first: Use, second: Use, size: int) -> Tensor:
    """``[n, m]``: inner products of the rows of one parameter for two sets of samples."""
    if isinstance(first, Contract) and isinstance(second, Contract) and first.dims[3:] == second.dims[3:]:
        return _contract(first, second)
    if isinstance(first, Lookup) and isinstance(second, Lookup):
        return _lookup(first, second)
    parts = []
    for s in in_cache(samples_of(first), size):
        rows = flat_rows(first, s)
        parts.append(torch.cat([rows @ flat_rows(second, r).mT for r in in_cache(samples_of(second), size)], 1))
    return torch.cat(parts)


def _contract(first: Contract, second: Contract) -> Tensor:
    n, groups, t, a, b = first.dims
    m, _, other_t, _, _ = second.dims
    L, R = wide(first.left[:]), wide(first.right[:])
    same = second is first
    P, Q = (L, R) if same else (wide(second.left[:]), wide(second.right[:]))
    if t == other_t == 1:
        L, R, P, Q = (x.squeeze(2).movedim(1, 0) for x in (L, R, P, Q))
        return ((L @ P.mT) * (R @ Q.mT)).sum(0)
    result = L.new_zeros(n, m)
    for group in range(groups):
        for part in slices(a, max(1, _BLOCK_ELEMENTS // ((n + m) * b))):
            rows = (L[:, group, :, part].mT @ R[:, group]).flatten(1)
            others = rows if same else (P[:, group, :, part].mT @ Q[:, group]).flatten(1)
            result.addmm_(rows, others.mT)
    return result


def _lookup(first: Lookup, second: Lookup) -> Tensor:
    m, t, _ = second.g.shape
    g, flat, tokens = wide(first.g), wide(second.g).flatten(0, 1), second.index.flatten()
    parts = []
    for s in slices(first.g.shape[0], max(1, 4 * CACHE_ELEMENTS // max(first.g.shape[1] * m * t, 1))):
        equal = first.index[s].unsqueeze(2) == tokens
        parts.append(((g[s] @ flat.mT) * equal).sum(1).reshape(-1, m, t).sum(2))
    return torch.cat(parts)
