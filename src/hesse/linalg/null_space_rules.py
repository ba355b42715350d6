"""Null spaces that the structure of the operator knows: the open rule behind `null_space`."""

from __future__ import annotations

import math
from functools import singledispatch

import torch
from torch import Tensor

from hesse.core.memory import Budget
from hesse.linalg.dense import dense
from hesse.linalg.diagonal import diagonal_rule
from hesse.linalg.pinv_matrix import cut_of, keep, require_finite
from hesse.linalg.products import work_dtype
from hesse.linalg.rank_rules import is_gram, is_whole, largest_value, require_matrix
from hesse.operators import BlockDiagonal, Congruence, Conjugate, Dense, Kronecker, LowRank, Restriction, Scaled, Tag
from hesse.operators.base import LinearOperator


@singledispatch
def null_space_rule(A: LinearOperator, rtol: float | None, memory: Budget | None) -> Tensor | None:
    """The open rule behind `null_space`: ``[k, in]``, orthonormal rows, or None where no structure knows them.

    Register more with ``@null_space_rule.register(MyOperator)``.

    Args:
        A: the operator.
        rtol: relative to its largest singular value; None stands for the larger dimension times the unit of rounding.
        memory: budget for matrices.
    """
    entries = diagonal_rule(A) if Tag.DIAGONAL in A.tags else None
    if entries is None:
        return None
    require_finite(entries)
    entries = entries.detach().to(work_dtype(entries.dtype))
    kept, _ = keep(entries.abs(), cut_of(A.shape, entries.dtype, rtol), len(entries))
    return _units(torch.nonzero(~kept)[:, 0], len(entries), entries.dtype)


def _units(places: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    rows = torch.zeros(len(places), dim, dtype=dtype, device=places.device)
    return rows.scatter_(1, places[:, None], 1)


def matrix_null_space(matrix: Tensor, rtol: float) -> Tensor:
    """``[k, in]``: the right singular vectors of those singular values of a matrix that are dropped, or that it does not have.

    Raises:
        NonFiniteError: an entry is NaN or infinite.
    """
    values, rows = _all_vectors(matrix)
    kept, _ = keep(values, rtol, min(matrix.shape))
    return rows[~kept]


def _all_vectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The singular values of a matrix ``[in]``, zeros for those it does not have, and all right singular vectors as rows."""
    matrix = matrix.detach().to(work_dtype(matrix.dtype))
    require_finite(matrix)
    _, values, Vh = torch.linalg.svd(matrix, full_matrices=matrix.shape[0] < matrix.shape[1])
    missing = values.new_zeros(matrix.shape[1] - len(values))
    return torch.cat([values, missing]), Vh.conj().resolve_conj()


@null_space_rule.register(Dense)
def _dense(A: Dense, rtol: float | None, memory: Budget | None) -> Tensor | None:
    return matrix_null_space(A.matrix, cut_of(A.shape, A.matrix.dtype, rtol))


@null_space_rule.register(Scaled)
def _scaled(A: Scaled, rtol: float | None, memory: Budget | None) -> Tensor | None:
    if complex(A.factor):
        return null_space_rule(A.operator, rtol, memory)
    return torch.eye(A.shape[1], dtype=work_dtype(A.in_space.dtype), device=A.in_space.device)


@null_space_rule.register(Conjugate)
def _conjugate(A: Conjugate, rtol: float | None, memory: Budget | None) -> Tensor | None:
    known = null_space_rule(A.operator, rtol, memory)
    return None if known is None else known.conj().resolve_conj()


@null_space_rule.register(Kronecker)
def _kronecker(A: Kronecker, rtol: float | None, memory: Budget | None) -> Tensor | None:
    """The products of the factors' singular vectors whose singular values have a small product."""
    dtype = work_dtype(torch.promote_types(A.left.dtype, A.right.dtype))
    (s, P), (t, Q) = (_all_vectors(part.to(dtype)) for part in (A.left, A.right))
    kept, _ = keep(torch.outer(s, t), cut_of(A.shape, dtype, rtol), min(A.shape))
    i, j = torch.nonzero(~kept, as_tuple=True)
    return (P[i][:, :, None] * Q[j][:, None, :]).flatten(1)


@null_space_rule.register(LowRank)
def _low_rank(A: LowRank, rtol: float | None, memory: Budget | None) -> Tensor | None:
    """The orthogonal complement of the right singular vectors that are kept."""
    if A.left.shape[1] > min(A.shape):
        return None
    dtype = work_dtype(torch.promote_types(A.left.dtype, A.weights.dtype))
    R = torch.linalg.qr(A.left.detach().to(dtype), mode="r").R
    P, S = torch.linalg.qr(A.right.detach().to(dtype).conj(), mode="complete")
    small = len(S.mT)  # the columns of P that the factor reaches
    middle = (R * A.weights.detach().to(dtype)) @ S[:small].mH
    values, rows = _all_vectors(middle)
    kept, _ = keep(values, cut_of(A.shape, dtype, rtol), small)
    return torch.cat([rows[~kept] @ P[:, :small].mT, P[:, small:].mT]).resolve_conj()


@null_space_rule.register(Restriction)
def _restriction(A: Restriction, rtol: float | None, memory: Budget | None) -> Tensor | None:
    known = null_space_rule(A.operator, rtol, memory) if is_whole(A) else None
    if known is None:
        return None
    parts = known.split(A.operator.in_space.sizes, dim=-1)
    return torch.cat([parts[place] for place in A.inputs], dim=-1)


@null_space_rule.register(Congruence)
def _congruence(A: Congruence, rtol: float | None, memory: Budget | None) -> Tensor | None:
    if not is_gram(A):
        return None
    return null_space_rule(A.outer, math.sqrt(cut_of(A.shape, A.in_space.dtype, rtol)), memory)


@null_space_rule.register(BlockDiagonal)
def _blocks(A: BlockDiagonal, rtol: float | None, memory: Budget | None) -> Tensor | None:
    """Those of the blocks, each by the cut-off of the whole."""
    rtol = cut_of(A.shape, A.out_space.dtype, rtol)
    tops = [largest_value(block, memory) for block in A.blocks.values()]
    top, found = max(tops, default=0.0), []
    for block, own in zip(A.blocks.values(), tops, strict=True):
        cut = rtol * top / own if own else rtol
        rows = null_space_rule(block, cut, memory)
        if rows is None:
            require_matrix(block, "null_space", memory, 8)
            rows = matrix_null_space(dense(block, memory=memory), cut)
        found.append(rows)
    start, parts = 0, []
    for rows in found:
        after = A.shape[1] - start - rows.shape[1]
        parts.append(torch.nn.functional.pad(rows, (start, after)))
        start += rows.shape[1]
    dtype = work_dtype(A.in_space.dtype)
    return torch.cat([part.to(dtype) for part in parts]) if parts else torch.zeros(0, A.shape[1], dtype=dtype)
