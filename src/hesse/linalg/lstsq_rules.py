"""Least squares that the structure of the operator solves: the open rule behind `lstsq`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import singledispatch
from typing import TypeAlias

import torch
from torch import Tensor

from hesse.linalg.answer import Answer, conjugated, filter_factors, lstsq_matrix, rescaled, side_by_side
from hesse.linalg.diagonal import diagonal_rule
from hesse.linalg.products import work_dtype
from hesse.operators import BlockDiagonal, Conjugate, Dense, Kronecker, LinearOperator, LowRank, Scaled, Tag

Inner: TypeAlias = Callable[[LinearOperator, Tensor, float], Answer]


@singledispatch
def lstsq_rule(A: LinearOperator, B: Tensor, damping: float, inner: Inner) -> Answer | None:
    """Minimize ``|b - A x|^2 + damping |x|^2`` through the structure of `A`, or return None.

    What a rule returns is checked with the true operator by `lstsq`.

    Args:
        A: the operator; register more with ``@lstsq_rule.register(MyOperator)``.
        B: right-hand sides ``[k, out]``, in the working dtype.
        damping: not negative; without damping the rule gives the solution of least norm.
        inner: ``(part, rows, damping)``: solves the same problem for parts of `A`, by whatever suits them.
    """
    entries = diagonal_rule(A) if Tag.DIAGONAL in A.tags else None
    if entries is None:
        return None
    entries = entries.detach().to(torch.promote_types(work_dtype(entries.dtype), B.dtype))
    filtered, condition, norm = filter_factors(entries.abs(), damping, 0)
    phase = torch.where(entries == 0, entries, entries.conj() / entries.abs())
    dropped = 0 if damping else int((filtered == 0).sum())
    return Answer(B * filtered * phase, condition, 0, "", norm, truncated=dropped)


@lstsq_rule.register(Dense)
def _dense(A: Dense, B: Tensor, damping: float, inner: Inner) -> Answer:
    return lstsq_matrix(A.matrix, B, damping)


@lstsq_rule.register(Scaled)
def _scaled(A: Scaled, B: Tensor, damping: float, inner: Inner) -> Answer:
    factor = complex(A.factor)
    if factor == 0:
        dropped = 0 if damping else min(A.shape)
        return Answer(B.new_zeros(len(B), A.shape[1]), 1.0, 0, "", damping**0.5, truncated=dropped)
    # |b - f A x|^2 + c |x|^2 = |f|^2 (|b / f - A x|^2 + c / |f|^2 |x|^2)
    return rescaled(inner(A.operator, B, damping / abs(factor) ** 2), factor)


@lstsq_rule.register(Conjugate)
def _conjugate(A: Conjugate, B: Tensor, damping: float, inner: Inner) -> Answer:
    return conjugated(inner(A.operator, B.conj().resolve_conj(), damping))


@lstsq_rule.register(BlockDiagonal)
def _blocks(A: BlockDiagonal, B: Tensor, damping: float, inner: Inner) -> Answer:
    blocks = list(A.blocks.values())
    answers = [inner(block, b, damping) for block, b in zip(blocks, B.split([b.shape[0] for b in blocks], dim=-1), strict=True)]
    found = side_by_side(answers, B)
    missing = min(A.shape) - sum(min(block.shape) for block in blocks)  # rectangular blocks may leave a null space
    known = damping == 0 and found.truncated is not None
    return replace(found, truncated=(found.truncated or 0) + missing) if known else found


@lstsq_rule.register(Kronecker)
def _kronecker(A: Kronecker, B: Tensor, damping: float, inner: Inner) -> Answer:
    dtype = torch.promote_types(torch.promote_types(work_dtype(A.left.dtype), work_dtype(A.right.dtype)), B.dtype)
    P, s, Qh = torch.linalg.svd(A.left.detach().to(dtype), full_matrices=False)
    U, t, Vh = torch.linalg.svd(A.right.detach().to(dtype), full_matrices=False)
    rotated = P.mH @ B.to(dtype).reshape(len(B), len(A.left), len(A.right)) @ U.conj()
    filtered, condition, norm = filter_factors(torch.outer(s, t), damping, max(A.shape))
    dropped = 0 if damping else min(A.shape) - int((filtered != 0).sum())
    return Answer((Qh.mH @ (rotated * filtered) @ Vh.conj()).flatten(1), condition, 0, "", norm, truncated=dropped)


@lstsq_rule.register(LowRank)
def _low_rank(A: LowRank, B: Tensor, damping: float, inner: Inner) -> Answer | None:
    """By the matrix of size rank that is left between orthonormal bases of the factors."""
    if A.left.shape[1] > min(A.shape):
        return None
    left, right = (F.detach().to(torch.promote_types(work_dtype(F.dtype), B.dtype)) for F in (A.left, A.right))
    (Q, R), (P, S) = torch.linalg.qr(left), torch.linalg.qr(right.conj())  # A = Q (R s S^H) P^H
    middle = (R * A.weights.detach().to(R.dtype)) @ S.mH
    found = lstsq_matrix(middle, B @ Q.conj(), damping)
    dropped = 0 if damping else (found.truncated or 0) + min(A.shape) - len(middle)
    return replace(found, value=found.value @ P.mT, truncated=dropped)
