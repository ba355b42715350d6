"""Inner products of rows, without the rows of all samples at once."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hesse.core.batching import slices
from hesse.parameters.contractions.by_positions import fewer_by_positions, gram_by_positions, pays
from hesse.parameters.contractions.tokens import equal_tokens
from hesse.parameters.contractions.uses import Parts, Use, flat_rows, row_blocks, wide
from hesse.rules.forms import Contract, Dense, Lookup
from hesse.rules.layers.convolution import Patches

_KNOWN = 2  # products kept: of the factors of one layer
_TRIANGLE = 64  # rows of a block, at least
_BLOCK_ELEMENTS = 2**21  # of the rows, written for all samples but a part of the parameter
_PATCH_ELEMENTS = 2**22  # the same for convolutions, whose patches are cut anew for every part

Known = dict[Any, tuple[Tensor, ...]]


def gram(first: Use, second: Use, size: int, known: Known) -> Tensor:
    """``[n, m]``: inner products of the rows of one parameter for two sets of samples.

    Args:
        first, second: the rows; the same object for products of rows with each other, of which only the lower triangle has to
            be right then.
        size: elements of the parameter.
        known: products of factors that were formed already (a layer's weight and bias share ``g gᵀ``).
    """
    if isinstance(first, Contract) and isinstance(second, Contract) and first.dims[3:] == second.dims[3:]:
        return _contract(first, second, known)
    if isinstance(first, Lookup) and isinstance(second, Lookup):
        return equal_tokens(first, second)
    if isinstance(first, Parts) and isinstance(second, Parts) and [b for b, _ in first.uses] == [b for b, _ in second.uses]:
        pairs = zip(first.uses, second.uses, strict=True)
        return torch.stack([gram(own, other, size, known) for (_, own), (_, other) in pairs]).sum(0)
    if isinstance(first, Dense) and isinstance(second, Dense):
        return _products(flat_rows(first, slice(None)), flat_rows(second, slice(None)), known)
    parts = []
    for _, rows in row_blocks(first, size):
        parts.append(torch.cat([rows @ others.mT for _, others in row_blocks(second, size)], 1))
    return torch.cat(parts)


def forms_rows(use: Use) -> bool:
    """Whether inner products of many such rows form them, anew every time, since they are held as factors."""
    if isinstance(use, Contract):
        return use.dims[2] > 1 and not fewer_by_positions(use)
    if isinstance(use, Parts):
        return any(forms_rows(part) for _, part in use.uses)
    return not isinstance(use, (Lookup, Dense))


def _products(rows: Tensor, others: Tensor, known: Known) -> Tensor:
    """``rows othersᵀ``, looked up if the same memory was multiplied before."""
    if rows.requires_grad or others.requires_grad:
        return rows @ others.mT
    key = tuple((x.data_ptr(), tuple(x.shape), x.stride(), x.dtype) for x in (rows, others))
    if key not in known:
        product = _lower(rows) if key[0] == key[1] else rows @ others.mT
        if len(known) >= _KNOWN:
            del known[next(iter(known))]
        known[key] = (product, rows, others)  # kept alive, so that no other tensor takes their place in memory
    return known[key][0]


def _lower(rows: Tensor) -> Tensor:
    """``rows rowsᵀ`` where only the lower triangle counts, in blocks of rows up to the diagonal (the rest is zero)."""
    n = len(rows)
    if n < 4 * _TRIANGLE:
        return rows @ rows.mT
    product = rows.new_zeros(n, n)
    for part in slices(n, max(_TRIANGLE, n // 8)):
        torch.mm(rows[part], rows[: part.stop].mT, out=product[part, : part.stop])
    return product


def _contract(first: Contract, second: Contract, known: Known) -> Tensor:
    n, groups, t, a, b = first.dims
    m, _, other_t, _, _ = second.dims
    same = second is first
    if t == other_t == 1:
        total: Tensor | None = None
        L, R, P, Q = (wide(rows[:]).squeeze(2) for rows in (first.left, first.right, second.left, second.right))
        for group in range(groups):
            part = _products(L[:, group], P[:, group], known) * _products(R[:, group], Q[:, group], known)
            total = part if total is None else total + part
        assert total is not None
        return total
    if pays(first, second):
        found = gram_by_positions(first, second)
        if found is not None:
            return found
    first = _at_once(first)
    second = first if same else _at_once(second)
    kernel = next((math.prod(use.right.kernel) for use in (first, second) if isinstance(use.right, Patches)), 0)
    flip = a > b and not kernel
    first, second = (first.transposed(), second.transposed()) if flip else (first, second)
    elements = _PATCH_ELEMENTS if kernel else _BLOCK_ELEMENTS
    width = max(1, elements // ((n if same else n + m) * max(first.dims[3], t)))
    result = wide(first.left[:1]).new_zeros(n, m)
    whole = max(kernel, 1)  # of patches, whole kernels
    for part in slices(first.dims[4], max(1, width // whole) * whole):
        rows = _partial_rows(first, part)
        others = rows if same else _partial_rows(second, part)
        result = result.addmm(rows, others.mT) if rows.requires_grad else result.addmm_(rows, others.mT)
    return result


def _at_once(use: Contract) -> Contract:
    """Factors that are cut or joined on every access, once and for all; but not patches, which are larger than their image."""
    left, right = (rows if isinstance(rows, Patches) else rows[:] for rows in (use.left, use.right))
    return Contract(left, right)


def _partial_rows(use: Contract, part: slice) -> Tensor:
    """``[n, G * a * part]``: some columns of the rows of all samples, patches cut for these only."""
    right = use.right.columns(part)[:] if isinstance(use.right, Patches) else use.right[:][..., part]
    return (wide(use.left[:]).mT @ wide(right)).flatten(1)
