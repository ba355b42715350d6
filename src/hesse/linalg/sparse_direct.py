"""Sparse factorizations: systems, and the determinants of definite matrices, by SuperLU (Demmel et al. 1999) through SciPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from hesse.core.errors import MemoryBudgetError, NonFiniteError
from hesse.linalg.answer import Answer
from hesse.linalg.lsmr import lsmr
from hesse.linalg.options import is_hermitian, rounding
from hesse.linalg.sparse_entries import entries_rule
from hesse.operators import LinearOperator

_SINGULAR = "the matrix is singular to working precision"
_STEPS = 1000


@dataclass(frozen=True)
class _Factors:
    """``P A Q = L U``.

    Attributes:
        matrix: in compressed columns.
        lu: SciPy's handle; None for a matrix with a pivot of zero.
        condition: an estimate from below of the condition number in the 1-norm.
    """

    matrix: Any
    lu: Any
    condition: float


_factors: WeakKeyDictionary[LinearOperator, _Factors] = WeakKeyDictionary()


def solve_sparse(A: LinearOperator, B: Tensor) -> Answer | None:
    """Rows x with ``A x = b`` for the rows b of `B` ``[k, dim]``, by the LU factors of the entries; None if no rule has these.

    The factors live as long as the operator does, and are computed anew once its entries have changed. A singular matrix gets
    the least-squares solution of least norm, by LSMR, and says so in `trouble`.

    Raises:
        NonFiniteError: an entry is NaN or infinite. MemoryBudgetError: the factors do not fit into memory.

    Cost: no products: the factors have about 30 times as many numbers as a matrix from a grid in two dimensions, a small
    multiple for band and arrow-head matrices.
    """
    entries = entries_rule(A)
    if entries is None:
        return None
    numbers = np.ascontiguousarray(B.detach().resolve_conj().cpu().numpy().T)
    matrix = entries.tocsc().astype(np.promote_types(entries.dtype, numbers.dtype))
    matrix.sum_duplicates()
    if not len(numbers):
        return Answer(B, 1.0)
    factors = _factored(A, matrix)
    if factors.lu is None or not factors.condition * np.finfo(matrix.dtype).eps < 1:
        found = lsmr(A, B, 10 * rounding(A), min(2 * len(numbers), _STEPS))
        return Answer(found.value, float("inf"), found.iterations, _SINGULAR)
    value = factors.lu.solve(numbers.astype(matrix.dtype, copy=False))
    return Answer(torch.from_numpy(np.ascontiguousarray(value.T)).to(B.device), factors.condition)


def _factored(A: LinearOperator, matrix: Any) -> _Factors:
    known = _factors.get(A)
    if known is None or not _equal(known.matrix, matrix):
        known = _factors[A] = _factor(matrix, is_hermitian(A))
    return known


def _equal(first: Any, second: Any) -> bool:
    pairs = ((first.data, second.data), (first.indices, second.indices), (first.indptr, second.indptr))
    return first.dtype == second.dtype and all(np.array_equal(a, b) for a, b in pairs)


def _factor(matrix: Any, symmetric: bool) -> _Factors:
    try:
        lu = _superlu(matrix, 0.1) if symmetric else _superlu(matrix)
    except RuntimeError:  # a pivot of zero
        return _Factors(matrix, None, float("inf"))
    size = float(abs(matrix).sum(axis=0).max())
    return _Factors(matrix, lu, size * _inverse_norm(lu, matrix.shape[0], matrix.dtype))


def _superlu(matrix: Any, threshold: float | None = None) -> Any:
    """The factors; with a threshold pivots are taken from the diagonal while they reach this share of their column."""
    from scipy.sparse.linalg import splu

    if not np.isfinite(matrix.data).all():
        raise NonFiniteError("A sparse factorization needs finite entries.", "NaN or infinity", "look where they come from")
    try:
        if threshold is None:
            return splu(matrix)
        return splu(matrix, "MMD_AT_PLUS_A", diag_pivot_thresh=threshold, options={"SymmetricMode": True})
    except MemoryError as error:
        raise MemoryBudgetError(
            "A sparse system is solved by its LU factors.",
            f"more than the memory holds, for {matrix.nnz} entries of a matrix of shape {matrix.shape}",
            "use an iterative method: 'cg', 'minres' or 'lsmr'",
        ) from error


def _inverse_norm(lu: Any, size: int, dtype: Any) -> float:
    """The 1-norm of the inverse, estimated from below by a few solutions (Hager 1984, with the last vector of Higham 1988)."""
    x, best, back = np.full(size, 1 / size, dtype), 0.0, "H" if np.issubdtype(dtype, np.complexfloating) else "T"
    for _ in range(5):
        y = lu.solve(x)
        reached = float(abs(y).sum())
        if not reached > best:
            break
        best = reached
        z = lu.solve(np.where(y == 0, 1, y / np.where(y == 0, 1, abs(y))).astype(dtype), back)
        place = int(abs(z).argmax())
        if abs(z[place]) <= abs(z.conj() @ x):
            break
        x = np.zeros(size, dtype)
        x[place] = 1
    turns = (-1.0) ** np.arange(size) * np.linspace(1, 2, size)
    return max(best, 2 * float(abs(lu.solve(turns.astype(dtype))).sum()) / (3 * size))


def sparse_pivots(matrix: Any) -> Any:
    """The pivots ``D`` of ``L D L^H`` with the least fill, for a Hermitian matrix: all positive if and only if it is definite.

    Args:
        matrix: a SciPy sparse array.

    Returns:
        ``[dim]``, real, or None where one is zero or has to be taken off the diagonal: there it is not definite.

    Raises:
        NonFiniteError: an entry is NaN or infinite. MemoryBudgetError: the factors do not fit into memory.
    """
    try:
        lu = _superlu(matrix.tocsc(), 0.0)
    except RuntimeError:
        return None
    return lu.U.diagonal().real if np.array_equal(lu.perm_r, lu.perm_c) else None
