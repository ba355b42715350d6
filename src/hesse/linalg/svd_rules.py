"""Singular triplets that the structure of the operator knows: the open rule behind `svd`."""

from __future__ import annotations

from functools import singledispatch
from typing import NamedTuple

import torch
from torch import Tensor

from hesse.linalg.diagonal import diagonal_rule
from hesse.linalg.products import real_dtype, work_dtype
from hesse.operators import Conjugate, Dense, Kronecker, LinearOperator, Scaled, Tag


class Triplets(NamedTuple):
    """Singular triplets as rows: U ``[k, out]``, values ``[k]`` (best first), V ``[k, in]``; ``A v = value u``."""

    U: Tensor
    values: Tensor
    V: Tensor


def matrix_triplets(matrix: Tensor, k: int, which: str) -> Triplets:
    """The `k` wanted triplets of a matrix, 16-bit ones in float32."""
    U, values, Vh = torch.linalg.svd(matrix.detach().to(work_dtype(matrix.dtype)), full_matrices=False)
    best = best_of(values, k, which)
    return Triplets(U.mT[best], values[best], Vh.conj()[best].resolve_conj())


def best_of(values: Tensor, k: int, which: str) -> Tensor:
    """Indices of the `k` wanted values, best first."""
    return torch.argsort(values, descending=which == "largest", stable=True)[:k]


@singledispatch
def svd_rule(A: LinearOperator, k: int, which: str) -> Triplets | None:
    """The open rule behind `svd`: the triplets, or None where no structure knows them.

    Register more with ``@svd_rule.register(MyOperator)``.
    """
    entries = diagonal_rule(A) if Tag.DIAGONAL in A.tags else None
    if entries is None:
        return None
    entries = entries.detach().to(work_dtype(entries.dtype))
    sizes = entries.abs()
    best = best_of(sizes, k, which)
    V = torch.zeros(k, len(entries), dtype=entries.dtype, device=entries.device)
    V[torch.arange(k, device=best.device), best] = 1
    phase = torch.where(sizes > 0, entries / torch.where(sizes > 0, sizes, 1), 1)[best]
    return Triplets(phase[:, None] * V, sizes[best].to(real_dtype(entries.dtype)), V)


@svd_rule.register(Dense)
def _dense(A: Dense, k: int, which: str) -> Triplets | None:
    if A.matrix.is_complex() != A.in_space.dtype.is_complex:
        return None
    return matrix_triplets(A.matrix, k, which)


@svd_rule.register(Scaled)
def _scaled(A: Scaled, k: int, which: str) -> Triplets | None:
    known, factor = svd_rule(A.operator, k, which), complex(A.factor)
    if known is None:
        return None
    size = abs(factor)
    phase = factor / size if size else 1.0
    turn = phase if known.U.is_complex() else complex(phase).real
    return Triplets(turn * known.U, size * known.values, known.V)


@svd_rule.register(Conjugate)
def _conjugate(A: Conjugate, k: int, which: str) -> Triplets | None:
    known = svd_rule(A.operator, k, which)
    if known is None:
        return None
    return Triplets(known.U.conj().resolve_conj(), known.values, known.V.conj().resolve_conj())


@svd_rule.register(Kronecker)
def _kronecker(A: Kronecker, k: int, which: str) -> Triplets | None:
    rank = min(A.left.shape) * min(A.right.shape)
    if rank < (k if which == "largest" else min(A.shape)):  # zeros that the triplets of the factors do not make up
        return None
    left, right = (matrix_triplets(F, min(F.shape), which) for F in (A.left, A.right))
    best = best_of(torch.outer(left.values, right.values).flatten(), k, which)
    i, j = best // len(right.values), best % len(right.values)
    U, V = (
        (first[i][:, :, None] * second[j][:, None, :]).flatten(1) for first, second in ((left.U, right.U), (left.V, right.V))
    )
    return Triplets(U, left.values[i] * right.values[j], V)
