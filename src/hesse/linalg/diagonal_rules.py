"""Diagonals that the structure of the operator knows: the open rule behind `diagonal`, and the exact diagonal."""

from __future__ import annotations

from functools import singledispatch
from itertools import islice

import torch
from torch import Tensor

from hesse.core import random
from hesse.core.batching import slices
from hesse.core.memory import Budget
from hesse.linalg.products import beside, block_bytes, mm_within, normal_vectors, real_dtype, rows_at_once
from hesse.operators import (
    Average,
    BlockDiagonal,
    Composed,
    Congruence,
    Conjugate,
    Dense,
    Diagonal,
    Identity,
    Kronecker,
    LinearOperator,
    LowRank,
    Scaled,
    Sum,
    Tag,
)

_FEW = 1024  # products that are not worth one more, which tells rows of zeros


def exact_diagonal(A: LinearOperator, memory: Budget | None = None) -> Tensor:
    """The diagonal ``[dim]`` from the structure of the operator, or by products with the unit vectors."""
    known = diagonal_rule(A)
    known = costly_diagonal_rule(A) if known is None else known
    if known is not None:
        return known
    dim, space = A.shape[0], A.in_space
    result = torch.zeros(dim, dtype=A.out_space.dtype, device=A.out_space.device)
    alive = _rows_that_are_not_zero(A)
    for part in slices(len(alive), rows_at_once(A, len(alive), "the exact diagonal", memory=memory), "diagonal"):
        places = alive[part].unsqueeze(1)
        units = torch.zeros(len(places), dim, dtype=real_dtype(space.dtype), device=space.device).scatter_(1, places, 1)
        with beside(A, block_bytes(A, len(places)), memory, kept=0):
            products = A.out_space.ravel(mm_within(A, space.unravel(units)), 1)
        result[alive[part]] = products.gather(1, places).squeeze(1)
    return result


def _rows_that_are_not_zero(A: LinearOperator) -> Tensor:
    """The rows whose product with a random vector is not exactly zero: tokens of a large table that do not occur drop out."""
    dim, space = A.shape[0], A.in_space
    if dim <= _FEW:
        return torch.arange(dim, device=space.device)
    probe = normal_vectors(space, 1, random.make_generator())
    return torch.nonzero(A.out_space.ravel(A.mm(space.unravel(probe)), 1)[0])[:, 0]


@singledispatch
def diagonal_rule(A: LinearOperator) -> Tensor | None:
    """The open rule behind `diagonal`: ``[dim]``, or None where it takes many products."""
    if Tag.DIAGONAL in A.tags:
        ones = torch.ones(A.in_space.dim, dtype=A.in_space.dtype, device=A.in_space.device)
        return A.out_space.ravel(A.mv(A.in_space.unravel(ones)))
    return None


@singledispatch
def costly_diagonal_rule(A: LinearOperator) -> Tensor | None:
    """The open rule of operators that have a way to their diagonal which is shorter than dim products, and yet long: ``[dim]``.

    An estimate is tried first where a tolerance is given.
    """
    return None


@costly_diagonal_rule.register(Average)
def _costly_average(A: Average) -> Tensor | None:
    if any(costly_diagonal_rule(first) is None for first in islice(A.operators(), 1)):
        return None
    return A.combine(exact_diagonal)


@diagonal_rule.register(Identity)
def _identity(A: Identity) -> Tensor:
    return torch.ones(A.in_space.dim, dtype=A.in_space.dtype, device=A.in_space.device)


@diagonal_rule.register(Dense)
def _dense(A: Dense) -> Tensor:
    return A.matrix.diagonal().to(A.out_space.dtype, copy=True)


@diagonal_rule.register(Diagonal)
def _diagonal(A: Diagonal) -> Tensor:
    return A.in_space.ravel(A.entries).clone()


@diagonal_rule.register(LowRank)
def _low_rank(A: LowRank) -> Tensor:
    return (A.left * A.weights * A.right).sum(-1)


@diagonal_rule.register(Kronecker)
def _kronecker(A: Kronecker) -> Tensor:
    rows, columns = A.right.shape
    at = torch.arange(A.shape[0], device=A.left.device)
    return A.left[at // rows, at // columns] * A.right[at % rows, at % columns]


@diagonal_rule.register(Sum)
def _sum(A: Sum) -> Tensor | None:
    total: Tensor | None = None
    for term in A.terms:
        part = diagonal_rule(term)
        if part is None:
            return None
        total = part if total is None else total + part
    return total


@diagonal_rule.register(Scaled)
def _scaled(A: Scaled) -> Tensor | None:
    known = diagonal_rule(A.operator)
    return None if known is None else A.factor * known


@diagonal_rule.register(Conjugate)
def _conjugate(A: Conjugate) -> Tensor | None:
    known = diagonal_rule(A.operator)
    return None if known is None else known.conj().resolve_conj()


@diagonal_rule.register(Composed)
def _composed(A: Composed) -> Tensor | None:
    if isinstance(A.first, Dense) and isinstance(A.second, Dense):
        return (A.first.matrix * A.second.matrix.mT).sum(-1)
    if not (A.first.tags | A.second.tags) & {Tag.DIAGONAL}:
        return None
    first, second = diagonal_rule(A.first), diagonal_rule(A.second)
    return None if first is None or second is None else first * second


@diagonal_rule.register(Congruence)
def _congruence(A: Congruence) -> Tensor | None:
    if A.middle is None:
        return column_squares_rule(A.outer)
    if not isinstance(A.outer, Dense) or A.outer.matrix.is_complex() != A.in_space.dtype.is_complex:
        return None
    squares = A.outer.matrix.abs().square()
    middle = diagonal_rule(A.middle) if Tag.DIAGONAL in A.middle.tags else None
    return None if middle is None else (middle[:, None] * squares).sum(0)


@singledispatch
def column_squares_rule(J: LinearOperator) -> Tensor | None:
    """The open rule behind the diagonal of ``J.H @ J``: ``[in]``, the squared 2-norms of the columns, or None."""
    return None


@column_squares_rule.register(Dense)
def _dense_columns(J: Dense) -> Tensor | None:
    if J.matrix.is_complex() != J.in_space.dtype.is_complex:
        return None
    return J.matrix.abs().square().sum(0).to(J.in_space.dtype)


@diagonal_rule.register(Average)
def _average(A: Average) -> Tensor | None:
    if any(diagonal_rule(first) is None for first in islice(A.operators(), 1)):
        return None
    return A.combine(exact_diagonal)


@diagonal_rule.register(BlockDiagonal)
def _blocks(A: BlockDiagonal) -> Tensor | None:
    parts: list[Tensor] = []
    for block in A.blocks.values():
        part = diagonal_rule(block) if block.shape[0] == block.shape[1] else None
        if part is None:
            return None
        parts.append(part.to(A.out_space.dtype))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=A.out_space.dtype, device=A.out_space.device)
