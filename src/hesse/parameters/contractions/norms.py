"""Squared norms of rows, without the rows."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.parameters.contractions.tokens import add_equal_tokens
from hesse.parameters.contractions.uses import Parts, Use, flat_rows, in_cache, row_blocks, wide
from hesse.rules.forms import Contract, Dense, Lookup


def squared_norms(use: Use, size: int) -> Tensor:
    """``[n]``: the squared 2-norm of each row of a parameter with `size` elements.

    A `Contract` with one position is a product of two norms; with t positions the cheaper of t x t products of positions
    (Goodfellow 2015; Rochette, Manoel, Tramel 2019) and of the rows themselves, a few at a time.
    """
    if isinstance(use, Contract):
        return _contract(use)
    if isinstance(use, Lookup):
        sums, _ = add_equal_tokens(use)
        return _squares(sums).reshape(use.index.shape).sum(1)
    if isinstance(use, Parts):
        return torch.stack([squared_norms(part, _size(box)) for box, part in use.uses]).sum(0)
    if isinstance(use, Dense):
        return _squares(flat_rows(use, slice(None)))
    return torch.cat([_squares(rows) for _, rows in row_blocks(use, size)])


def _size(box: tuple[tuple[int, int], ...]) -> int:
    total = 1
    for start, stop in box:
        total *= stop - start
    return total


def _squares(rows: Tensor) -> Tensor:
    """Squared norms along the last axis, with no array of the squares."""
    if rows.requires_grad:
        return rows.square().sum(-1)
    return torch.linalg.vector_norm(rows, dim=-1).square_()


def _contract(use: Contract) -> Tensor:
    n, groups, t, a, b = use.dims
    by_positions = t * (a + b) < a * b
    work = groups * (t * t + t * (a + b) if by_positions else a * b + t * (a + b))
    if t == 1:
        products = _squares(wide(use.left[:])) * _squares(wide(use.right[:]))
        return products.reshape(n) if groups == 1 else products.sum((1, 2))
    parts = []
    for s in in_cache(n, work):
        left, right = wide(use.left[s]), wide(use.right[s])
        parts.append(_by_positions(left, right) if by_positions else _squares((left.mT @ right).flatten(1)))
    return torch.cat(parts)


def _by_positions(left: Tensor, right: Tensor) -> Tensor:
    """Squared norms from products of positions; rows in which positions cancel are written out, since digits cancel too."""
    lefts, rights = left @ left.mT, right @ right.mT
    squares = (lefts * rights).sum((1, 2, 3))
    diagonals = lefts.diagonal(dim1=2, dim2=3) * rights.diagonal(dim1=2, dim2=3)
    lost = squares.detach() < 1e-3 * diagonals.detach().sum((1, 2))
    if not bool(lost.any()):
        return squares
    exact = _squares((left[lost].mT @ right[lost]).flatten(1))
    return squares.index_put((lost.nonzero().squeeze(1),), exact)
