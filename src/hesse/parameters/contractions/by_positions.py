"""Inner products of rows from products of shared positions, where these are fewer than the numbers of a row.

For rows ``sum_t l[t] (outer) r[t]``, ``<row, row'> = sum_ts (l[t] . l'[s]) (r[t] . r'[s])`` (for norms: Rochette, Manoel,
Tramel 2019): ``t t' (a + b)`` multiplications a pair of samples instead of ``a b``, and no row is formed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.core.batching import slices
from hesse.parameters.contractions.uses import in_cache, wide
from hesse.rules.forms import Contract, Rows

_ELEMENTWISE = 24  # multiplications of a matrix product that take as long as one product of positions multiplied and added up
_ELEMENTS = 2**21  # of factors, and of products of positions, worked on at a time
_LOST = 1e-3  # of the squares of its positions, that a row's square is at least if digits are to be kept


def pays(first: Contract, second: Contract) -> bool:
    """Whether products of positions are less work than rows."""
    _, groups, t, a, b = first.dims
    others = second.dims[2]
    shared = sum(b * a * own / max(count, 1) for own, count in ((t, second.count), (others, first.count)))
    return groups * t * others * (a + b + _ELEMENTWISE) < groups * (a * b + shared)


def fewer_by_positions(use: Contract) -> bool:
    """Whether products of positions are less work than products of rows that are there already."""
    _, _, t, a, b = use.dims
    return t * t * (a + b + _ELEMENTWISE) < a * b


def gram_by_positions(first: Contract, second: Contract) -> Tensor | None:
    """``[n, m]``: inner products of rows; of a form with itself the lower triangle. None where positions cancel.

    Digits cancel with them: a row whose square is far below the squares of its positions has to be written out.
    """
    same = second is first
    if _cancels(first) or (not same and _cancels(second)):
        return None
    own, other = _samples_at_once(first, second), _samples_at_once(second, first)
    positions, bands = (first.dims[2], second.dims[2]), []
    for part in slices(first.count, own):
        factors = _factors(first, part)
        blocks = [
            factors[0].new_zeros(part.stop - part.start, others.stop - others.start)
            if same and others.start >= part.stop
            else _block(factors, factors if same and others == part else _factors(second, others), positions)
            for others in slices(second.count, other)
        ]
        bands.append(torch.cat(blocks, 1))
    return torch.cat(bands)


def _samples_at_once(use: Contract, other: Contract) -> int:
    _, groups, t, a, b = use.dims
    by_products = int((_ELEMENTS / (t * other.dims[2])) ** 0.5)
    return max(min(_ELEMENTS // (groups * t * (a + b)), by_products), 1)


def _factors(use: Contract, part: slice) -> tuple[Tensor, Tensor]:
    return _grouped(use.left, part), _grouped(use.right, part)


def _grouped(rows: Rows, part: slice) -> Tensor:
    """``[G, n t, a]``."""
    return wide(rows[part]).movedim(0, 1).flatten(1, 2)


def _block(factors: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor], positions: tuple[int, int]) -> Tensor:
    """``[n, m]``: the products of positions, multiplied and added up."""
    total: Tensor | None = None
    for left, right, left_other, right_other in zip(*factors, *others, strict=True):
        products = left @ left_other.mT
        further = right @ right_other.mT
        products = products * further if products.requires_grad or further.requires_grad else products.mul_(further)
        part = products.unflatten(1, (-1, positions[1])).sum(2).unflatten(0, (-1, positions[0])).sum(1)
        total = part if total is None else total + part
    assert total is not None
    return total


def _cancels(use: Contract) -> bool:
    """Whether the positions of some row cancel so far that products of them would lose its digits."""
    n, groups, t, a, b = use.dims
    for part in in_cache(n, groups * t * (t + a + b)):
        left, right = (wide(rows[part]).detach() for rows in (use.left, use.right))
        products = (left @ left.mT).mul_(right @ right.mT)
        squares = products.sum((1, 2, 3))
        if bool((squares < _LOST * products.diagonal(dim1=2, dim2=3).sum((1, 2))).any()):
            return True
    return False
