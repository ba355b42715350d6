"""Pseudo-inverses that the structure of the operator knows: the open rule behind `pinv`."""

from __future__ import annotations

from functools import singledispatch

import torch

from hesse.core.memory import Budget
from hesse.linalg.diagonal import diagonal_rule
from hesse.linalg.pinv_matrix import cut_of, dense_pinv, keep, refuse_derivative, require_finite
from hesse.linalg.products import work_dtype
from hesse.operators import Dense, Diagonal, Kronecker, LinearOperator, LowRank, Tag
from hesse.operators.algebra import Composed
from hesse.operators.pseudo_inverse import PseudoInverse


@singledispatch
def pinv_rule(A: LinearOperator, rtol: float | None, memory: Budget | None) -> LinearOperator | None:
    """The pseudo-inverse of `A` through its structure, or None.

    Args:
        A: the operator; register more with ``@pinv_rule.register(MyOperator)``.
        rtol: singular values up to `rtol` times the largest one of `A` are dropped; None stands for the larger dimension times
            the unit of rounding.
        memory: budget for matrices.

    Returns:
        an operator from `A.out_space` to `A.in_space` with the attributes of `PseudoInverse` as far as they are known.
    """
    entries = diagonal_rule(A) if Tag.DIAGONAL in A.tags and A.in_space == A.out_space else None
    if entries is None:
        return None
    require_finite(entries)
    wide = entries.to(work_dtype(entries.dtype))
    rtol = cut_of(A.shape, wide.dtype, rtol)
    kept, known = keep(wide.abs(), rtol, A.shape[0])
    if wide.requires_grad and torch.is_grad_enabled():
        refuse_derivative(known, A.shape[0], wide.dtype)
    inverse = torch.where(kept, 1 / torch.where(kept, wide, torch.ones_like(wide)), torch.zeros_like(wide))
    return PseudoInverse(Diagonal(A.in_space.unravel(inverse), A.tags & {Tag.HERMITIAN, Tag.PSD}), known, "diagonal")


@pinv_rule.register(Dense)
def _dense(A: Dense, rtol: float | None, memory: Budget | None) -> LinearOperator | None:
    inverse, kept = dense_pinv(A, A.matrix, cut_of(A.shape, A.matrix.dtype, rtol))
    return PseudoInverse(inverse, kept, "dense")


@pinv_rule.register(LowRank)
def _low_rank(A: LowRank, rtol: float | None, memory: Budget | None) -> LinearOperator | None:
    """By the matrix of size rank that is left between orthonormal bases of the factors."""
    tensors = (A.left, A.weights, A.right)
    if A.left.shape[1] > min(A.shape) or any(part.requires_grad for part in tensors):
        return None
    dtype = work_dtype(torch.promote_types(torch.promote_types(A.left.dtype, A.weights.dtype), A.right.dtype))
    left, weights, right = (part.to(dtype) for part in tensors)
    for part in (left, weights, right):
        require_finite(part)
    (Q, R), (P, S) = torch.linalg.qr(left), torch.linalg.qr(right.conj())  # A = Q (R s S^H) P^H
    U, values, Vh = torch.linalg.svd((R * weights) @ S.mH)
    kept, known = keep(values, cut_of(A.shape, dtype, rtol), min(A.shape))
    V, W = P @ Vh.mH[:, kept], (Q @ U[:, kept]).conj().resolve_conj()
    return PseudoInverse(LowRank(V, (1 / values[kept]).to(V.dtype), W, A.out_space, A.in_space), known, "low rank")


@pinv_rule.register(Kronecker)
def _kronecker(A: Kronecker, rtol: float | None, memory: Budget | None) -> LinearOperator | None:
    """By the factors' singular values, whose products are those of the whole; what is dropped need not be a product."""
    dtype = work_dtype(torch.promote_types(A.left.dtype, A.right.dtype))
    left, right = A.left.to(dtype), A.right.to(dtype)
    require_finite(left)
    require_finite(right)
    (P, s, Qh), (U, t, Vh) = (torch.linalg.svd(part.detach(), full_matrices=False) for part in (left, right))
    kept, known = keep(torch.outer(s, t), cut_of(A.shape, dtype, rtol), min(A.shape))
    derived = torch.is_grad_enabled() and (left.requires_grad or right.requires_grad)
    if derived:
        refuse_derivative(known, max(A.shape), dtype)
    if bool(kept.all()):
        first, second = (part.detach() if not derived else part for part in (left, right))
        plus = torch.linalg.pinv
        inverse = Kronecker(plus(first, rtol=0.0), plus(second, rtol=0.0), A.out_space, A.in_space, A.tags)
        return PseudoInverse(inverse, known, "kronecker")
    if derived:
        return None
    values = torch.outer(s, t)
    weights = torch.where(kept, 1 / torch.where(kept, values, torch.ones_like(values)), torch.zeros_like(values)).to(dtype)
    middle = Diagonal(weights)
    outer = Kronecker(Qh.mH, Vh.mH, middle.in_space, A.in_space)
    inner = Kronecker(P.mH, U.mH, A.out_space, middle.in_space)
    return PseudoInverse(_tagged(Composed(outer, Composed(middle, inner)), A), known, "kronecker")


def _tagged(inverse: LinearOperator, A: LinearOperator) -> LinearOperator:
    """What is known of a symmetric operator is known of its inverse."""
    if A.in_space == A.out_space:
        inverse.tags = A.tags
    return inverse
