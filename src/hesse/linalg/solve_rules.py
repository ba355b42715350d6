"""Systems that the structure of the operator solves: the open rule behind `solve`."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import TypeAlias

import torch
from torch import Tensor

from hesse.linalg.answer import Answer, conjugated, evaluated, rescaled, side_by_side, solve_matrix
from hesse.linalg.diagonal import diagonal_rule
from hesse.linalg.sparse_direct import solve_sparse
from hesse.operators import (
    BlockDiagonal,
    Conjugate,
    Dense,
    Identity,
    Kronecker,
    LinearOperator,
    Scaled,
    Tag,
)

Inner: TypeAlias = Callable[[LinearOperator, Tensor], Answer]
_SINGULAR = "the operator has a zero on its diagonal"


@singledispatch
def solve_rule(A: LinearOperator, B: Tensor, inner: Inner) -> Answer | None:
    """Solve ``A x = b`` for the rows b of ``B`` ``[k, dim]`` through the structure of `A`, or return None.

    What a rule returns is checked against the true operator by `solve`, and refined where that is not enough.

    Args:
        A: the operator; register more with ``@solve_rule.register(MyOperator)``.
        B: right-hand sides, in the working dtype.
        inner: solves systems with the parts of `A`, by whatever suits them.
    """
    entries = diagonal_rule(A) if Tag.DIAGONAL in A.tags else None
    return solve_sparse(A, B) if entries is None else solve_diagonal(entries, B)


def solve_diagonal(entries: Tensor, B: Tensor) -> Answer:
    """Rows ``b / entries``; zeros, and trouble, where an entry is zero."""
    if not entries.numel():
        return Answer(B, 1.0)
    entries = entries.detach()
    size = entries.abs()
    is_zero = size == 0
    if bool(is_zero.any()):
        safe = torch.where(is_zero, torch.ones_like(entries), entries)
        value, missing = torch.where(is_zero, torch.zeros_like(B), B / safe), int(is_zero.sum())
        return Answer(value, float("inf"), 0, _SINGULAR, truncated=missing)
    least = float(size.min())
    return Answer(B / entries, float(size.max()) / least, truncated=0, inverse_norm=1 / least)


@solve_rule.register(Identity)
def _identity(A: Identity, B: Tensor, inner: Inner) -> Answer:
    return Answer(B.clone(), 1.0, truncated=0, inverse_norm=1.0)


@solve_rule.register(Dense)
def _dense(A: Dense, B: Tensor, inner: Inner) -> Answer:
    return solve_matrix(A.matrix, B)


@solve_rule.register(Scaled)
def _scaled(A: Scaled, B: Tensor, inner: Inner) -> Answer | None:
    factor = complex(A.factor)
    if factor == 0:
        return Answer(torch.zeros_like(B), float("inf"), 0, "the factor of the operator is zero", truncated=A.shape[0])
    return rescaled(inner(A.operator, B), factor)


@solve_rule.register(Conjugate)
def _conjugate(A: Conjugate, B: Tensor, inner: Inner) -> Answer:
    return conjugated(inner(A.operator, B.conj().resolve_conj()))


@solve_rule.register(Kronecker)
def _kronecker(A: Kronecker, B: Tensor, inner: Inner) -> Answer | None:
    left, right = A.left, A.right
    if left.shape[0] != left.shape[1] or right.shape[0] != right.shape[1]:
        return None
    count, p, r = len(B), len(left), len(right)
    # left X right^T = B: first every column with the left factor, then every row with the right one
    first = solve_matrix(left, B.reshape(count, p, r).mT.reshape(count * r, p))
    second = solve_matrix(right, first.value.reshape(count, r, p).mT.reshape(count * p, r))
    condition = (first.condition or 1.0) * (second.condition or 1.0)
    rank = (p - (first.truncated or 0)) * (r - (second.truncated or 0))
    return Answer(
        second.value.reshape(count, p * r),
        condition,
        0,
        first.trouble or second.trouble,
        truncated=p * r - rank,
        inverse_norm=lambda: (evaluated(first.inverse_norm) or 1.0) * (evaluated(second.inverse_norm) or 1.0),
    )


@solve_rule.register(BlockDiagonal)
def _blocks(A: BlockDiagonal, B: Tensor, inner: Inner) -> Answer | None:
    blocks = list(A.blocks.values())
    if any(block.shape[0] != block.shape[1] for block in blocks):
        return None
    answers = [inner(block, b) for block, b in zip(blocks, B.split([b.shape[0] for b in blocks], dim=-1), strict=True)]
    return side_by_side(answers, B)
