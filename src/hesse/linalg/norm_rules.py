"""Norms that the structure of the operator knows: the open rule behind `norm`."""

from __future__ import annotations

import math
from functools import singledispatch

import torch
from torch import Tensor

from hesse.linalg.products import work_dtype
from hesse.operators import (
    BlockDiagonal,
    Congruence,
    Conjugate,
    Dense,
    Diagonal,
    Identity,
    Kronecker,
    LinearOperator,
    LowRank,
    Scaled,
    Tag,
)

Order = str | int


def frobenius(entries: Tensor) -> float:
    """The root of the sum of squares, 16-bit entries in float32."""
    return float(torch.linalg.vector_norm(entries.detach().to(work_dtype(entries.dtype))))


def spectral(matrix: Tensor) -> float:
    """The largest singular value of a matrix; 0 for an empty one."""
    if not matrix.numel():
        return 0.0
    return float(torch.linalg.matrix_norm(matrix.detach().to(work_dtype(matrix.dtype)), 2))


@singledispatch
def norm_rule(A: LinearOperator, ord: Order) -> float | None:
    """The open rule behind `norm`: a number, or None where no structure knows it without many products."""
    if Tag.DIAGONAL in A.tags:
        ones = torch.ones(A.in_space.dim, dtype=A.in_space.dtype, device=A.in_space.device)
        return _of_entries(A.out_space.ravel(A.mv(A.in_space.unravel(ones))), ord)
    return None


def _of_entries(entries: Tensor, ord: Order) -> float:
    return frobenius(entries) if ord == "fro" else float(entries.detach().abs().max()) if entries.numel() else 0.0


def _of_matrix(matrix: Tensor, ord: Order) -> float:
    return frobenius(matrix) if ord == "fro" else spectral(matrix)


@norm_rule.register(Identity)
def _identity(A: Identity, ord: Order) -> float:
    return math.sqrt(A.in_space.dim) if ord == "fro" else float(A.in_space.dim > 0)


@norm_rule.register(Dense)
def _dense(A: Dense, ord: Order) -> float:
    return _of_matrix(A.matrix, ord)


@norm_rule.register(Diagonal)
def _diagonal(A: Diagonal, ord: Order) -> float:
    return _of_entries(A.in_space.ravel(A.entries), ord)


@norm_rule.register(LowRank)
def _low_rank(A: LowRank, ord: Order) -> float:
    dtype = work_dtype(A.left.dtype)
    left = torch.linalg.qr(A.left.detach().to(dtype), mode="r").R
    right = torch.linalg.qr(A.right.detach().to(dtype), mode="r").R
    return _of_matrix((left * A.weights.detach().to(dtype)) @ right.mT, ord)


@norm_rule.register(Kronecker)
def _kronecker(A: Kronecker, ord: Order) -> float:
    return _of_matrix(A.left, ord) * _of_matrix(A.right, ord)


@norm_rule.register(Scaled)
def _scaled(A: Scaled, ord: Order) -> float | None:
    known = norm_rule(A.operator, ord)
    return None if known is None else abs(complex(A.factor)) * known


@norm_rule.register(Conjugate)
def _conjugate(A: Conjugate, ord: Order) -> float | None:
    return norm_rule(A.operator, ord)


@norm_rule.register(BlockDiagonal)
def _blocks(A: BlockDiagonal, ord: Order) -> float | None:
    sizes: list[float] = []
    for block in A.blocks.values():
        size = norm_rule(block, ord)
        if size is None:
            return None
        sizes.append(size)
    return math.hypot(*sizes) if ord == "fro" else max(sizes, default=0.0)


@norm_rule.register(Congruence)
def _congruence(A: Congruence, ord: Order) -> float | None:
    known = norm_rule(A.outer, ord) if A.middle is None and ord == 2 else None  # |J^H J| = |J|^2
    return None if known is None else known**2
