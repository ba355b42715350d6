"""Log-determinants that the structure of the operator knows: the open rule behind `logdet`."""

from __future__ import annotations

import math
from functools import singledispatch

import numpy as np
import torch
from torch import Tensor

from hesse.core.errors import SymmetryError
from hesse.linalg.diagonal import diagonal_rule
from hesse.linalg.eigenvalues import Eigenvalues, eigenvalues_rule, matrix_eigenvalues
from hesse.linalg.products import work_dtype
from hesse.linalg.sparse_direct import sparse_pivots
from hesse.linalg.sparse_entries import entries_rule
from hesse.operators import BlockDiagonal, Dense, Kronecker, LinearOperator, LowRank, Scaled, Sum, Tag


def not_definite(found: str) -> SymmetryError:
    """The error for an operator that has no log-determinant."""
    return SymmetryError(
        "logdet needs a positive definite operator.",
        found,
        "add damping: hesse.logdet(A + damping * hesse.identity(A.in_space))",
    )


def matrix_logdet(matrix: Tensor) -> float:
    """By the Cholesky factor of a Hermitian matrix, scaled to a diagonal of ones.

    Raises:
        SymmetryError: it is indefinite, or singular to working precision.
    """
    matrix = matrix.detach().to(work_dtype(matrix.dtype))
    if not len(matrix):
        return 0.0
    sizes = matrix.diagonal().real
    if float(sizes.min()) <= 0:
        raise not_definite(f"an entry of {float(sizes.min()):.6g} on the diagonal")
    root = sizes.sqrt()
    factor, trouble = torch.linalg.cholesky_ex(matrix / root[:, None] / root)
    pivots = factor.diagonal().real
    eps = torch.finfo(matrix.dtype).eps
    if int(trouble) or float(pivots.min()) ** 2 <= len(matrix) * eps:
        lowest = float(torch.linalg.eigvalsh(matrix)[0])
        raise not_definite(
            f"a smallest eigenvalue of {lowest:.6g}, the largest entry of the diagonal is {float(sizes.max()):.6g}"
        )
    return 2 * float(pivots.double().log().sum()) + float(sizes.double().log().sum())


def _of(known: Eigenvalues) -> float:
    lowest = float(known.values.min()) if known.values.numel() else 1.0
    if lowest <= known.noise:
        raise not_definite(f"a smallest eigenvalue of {lowest:.6g}, known to within {known.noise:.1g}")
    return known.sum(known.values.log())


@singledispatch
def logdet_rule(A: LinearOperator) -> float | None:
    """The open rule behind `logdet`: a number, or None where no structure knows it.

    Register more with ``@logdet_rule.register(MyOperator)``.

    Raises:
        SymmetryError: the operator is not positive definite.
    """
    known = eigenvalues_rule(A)
    return _of_entries(A) if known is None else _of(known)


def _of_entries(A: LinearOperator) -> float | None:
    """By the pivots of the few entries of a Hermitian matrix, scaled to a diagonal of ones; None where no rule has them."""
    matrix = entries_rule(A)
    if matrix is None:
        return None
    if not A.shape[0]:
        return 0.0
    sizes = matrix.diagonal().real
    if not float(sizes.min()) > 0:
        raise not_definite(f"an entry of {float(sizes.min()):.6g} on the diagonal")
    scale = 1 / np.sqrt(sizes)
    pivots = sparse_pivots(matrix.multiply(scale[:, None]).multiply(scale))
    if pivots is None or not float(pivots.min()) > len(sizes) * np.finfo(pivots.dtype).eps:
        found = "none on the diagonal" if pivots is None else f"{float(pivots.min()):.6g}"
        raise not_definite(f"a smallest pivot of {found} (after scaling it to a diagonal of ones)")
    return float(np.log(pivots, dtype=np.float64).sum() + np.log(sizes, dtype=np.float64).sum())


@logdet_rule.register(Dense)
def _dense(A: Dense) -> float:
    return matrix_logdet(A.matrix)


@logdet_rule.register(Scaled)
def _scaled(A: Scaled) -> float | None:
    factor = complex(A.factor).real
    if factor <= 0:
        known = eigenvalues_rule(A)
        return None if known is None else _of(known)
    known = logdet_rule(A.operator)
    return None if known is None else known + A.shape[0] * math.log(factor)


@logdet_rule.register(Kronecker)
def _kronecker(A: Kronecker) -> float | None:
    factors = [F.detach().to(work_dtype(F.dtype)) for F in (A.left, A.right)]
    if any(F.shape[0] != F.shape[1] or not torch.equal(F, F.mH) for F in factors):
        return None
    left, right = (matrix_eigenvalues(F) for F in factors)
    if not (left.values.numel() and right.values.numel()):
        return 0.0
    sign = -1.0 if float(left.values[0]) < 0 else 1.0  # two negative definite factors make a positive definite product
    left, right = (Eigenvalues(sign * part.values, part.counts, part.noise) for part in (left, right))
    return len(right.values) * _of(left) + len(left.values) * _of(right)


@logdet_rule.register(BlockDiagonal)
def _blocks(A: BlockDiagonal) -> float | None:
    parts = [logdet_rule(block) if block.shape[0] == block.shape[1] else None for block in A.blocks.values()]
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


@logdet_rule.register(Sum)
def _sum(A: Sum) -> float | None:
    known = eigenvalues_rule(A)
    if known is not None:
        return _of(known)
    by_determinant = _diagonal_and_low_rank(A)
    return _of_entries(A) if by_determinant is None else by_determinant


def _diagonal_and_low_rank(A: Sum) -> float | None:
    """``det(D + U S U^T) = det(D) det(1 + R S R^T)`` with ``D^-1/2 U = Q R``, for real ones with positive D."""
    entries: Tensor | None = None
    roots: list[tuple[Tensor, Tensor]] = []
    for term in A.terms:
        inside = term.operator if isinstance(term, Scaled) else term
        if isinstance(inside, LowRank):
            if inside.right is not inside.left:
                return None
            factor = term.factor if isinstance(term, Scaled) else 1.0
            roots.append((inside.left, factor * inside.weights))
            continue
        part = diagonal_rule(term) if Tag.DIAGONAL in term.tags else None
        if part is None:
            return None
        entries = part if entries is None else entries + part
    if entries is None or not roots or A.in_space.dtype.is_complex or bool((entries <= 0).any()):
        return None
    dtype = work_dtype(A.in_space.dtype)
    U, weights = (torch.cat([root[i].detach().to(dtype) for root in roots], dim=-1) for i in range(2))
    entries = entries.detach().to(dtype)
    R = torch.linalg.qr(U / entries.sqrt()[:, None], mode="r").R
    small = matrix_eigenvalues(torch.eye(len(R), dtype=dtype, device=R.device) + (R * weights) @ R.mT)
    return float(entries.double().log().sum()) + _of(small)
