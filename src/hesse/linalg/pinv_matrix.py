"""The pseudo-inverse of a matrix, by its singular values."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.core.errors import NonFiniteError, UnsupportedError
from hesse.linalg.products import all_finite, work_dtype
from hesse.operators import Dense, LinearOperator, LowRank, Tag
from hesse.operators.pseudo_inverse import Kept

_LOW = 0.5  # of the numbers of the matrix, up to which its factors take the place of the inverse


def cut_of(shape: tuple[int, int], dtype: torch.dtype, rtol: float | None) -> float:
    """`rtol`, or the default of `torch.linalg.pinv`: the larger dimension times the unit of rounding (16-bit: of float32)."""
    return max(shape) * torch.finfo(work_dtype(dtype)).eps if rtol is None else rtol


def keep(values: Tensor, rtol: float, least: int) -> tuple[Tensor, Kept]:
    """Which of the singular values (in any order) are above `rtol` times the largest, and what that makes.

    Args:
        values: ``[...]``, all but those that are zero by construction.
        rtol: relative tolerance.
        least: the smaller dimension of the operator: how many singular values there are, with those that are zero.
    """
    values = values.detach()
    if not values.numel():
        return torch.zeros_like(values, dtype=torch.bool), Kept.by_values(0, least, 0.0, 0.0, 0.0)
    largest = float(values.max())
    kept = values > rtol * largest
    rank = int(kept.sum())
    smallest = float(values[kept].min()) if rank else 0.0
    dropped = float(values[~kept].max()) if rank < values.numel() else 0.0
    return kept, Kept.by_values(rank, least - rank, largest, smallest, dropped)


def require_finite(entries: Tensor) -> None:
    """Raise `NonFiniteError` if there is a NaN or an infinity."""
    if not all_finite(entries):
        raise NonFiniteError(
            "A factorization or pseudo-inverse needs finite entries.", "NaN or infinity", "look where they come from"
        )


def refuse_derivative(kept: Kept, dims: int, dtype: torch.dtype) -> None:
    """Refuse the derivative where singular values that are not zero were dropped: the formulas take them for zero.

    Raises:
        UnsupportedError: one of those dropped is above rounding.
    """
    size, condition, gap = kept.largest, kept.condition, kept.gap
    if not (isinstance(size, float) and isinstance(condition, float) and isinstance(gap, float)) or not size:
        return
    dropped = (1 / condition / gap) if kept.rank else 1.0
    if kept.truncated and dropped > 10 * dims * torch.finfo(dtype).eps:
        raise UnsupportedError(
            "The derivative of a pseudo-inverse is known where the singular values that it drops are zero.",
            f"one dropped that is {dropped:.2g} of the largest",
            "detach() the matrix, or pass a smaller rtol",
        )


def matrix_pinv(matrix: Tensor, rtol: float, *, hermitian: bool = False) -> tuple[Tensor | tuple[Tensor, Tensor, Tensor], Kept]:
    """The pseudo-inverse of a matrix ``[out, in]``: ``[in, out]``, or factors ``(left, weights, right)`` of low rank.

    Where the matrix requires grad, the inverse is that of `torch.linalg.pinv`, with its derivative (Golub and Pereyra 1973),
    which holds at constant rank.

    Args:
        matrix: 16-bit ones are inverted in float32.
        rtol: singular values up to `rtol` times the largest are dropped.
        hermitian: make the result as symmetric as the matrix is.

    Raises:
        NonFiniteError: an entry is NaN or infinite. UnsupportedError: the derivative is wanted with a cut-off that matters.
    """
    matrix = matrix.to(work_dtype(matrix.dtype))
    require_finite(matrix)
    U, values, Vh = torch.linalg.svd(matrix.detach(), full_matrices=False)
    kept, known = keep(values, rtol, min(matrix.shape))
    if matrix.requires_grad and torch.is_grad_enabled() and min(matrix.shape):
        refuse_derivative(known, max(matrix.shape), matrix.dtype)
        return torch.linalg.pinv(matrix, rtol=rtol), known
    U, V, weights = U[:, kept], Vh.mH[:, kept], 1 / values[kept]
    if weights.numel() * sum(matrix.shape) < _LOW * matrix.numel() and not hermitian:
        return (V, weights.to(V.dtype), U.conj().resolve_conj()), known
    inverse = (V * weights) @ U.mH
    return ((inverse + inverse.mH) / 2 if hermitian else inverse), known


def dense_pinv(A: LinearOperator, matrix: Tensor, rtol: float) -> tuple[LinearOperator, Kept]:
    """The operator with the pseudo-inverse of the matrix of `A`, between its spaces."""
    square = A.in_space == A.out_space
    tags = A.tags & frozenset(Tag) if square else frozenset[Tag]()
    hermitian = bool(tags & {Tag.HERMITIAN, Tag.PSD}) or (Tag.SYMMETRIC in tags and not matrix.is_complex())
    found, kept = matrix_pinv(matrix, rtol, hermitian=hermitian)
    if isinstance(found, tuple):
        left, weights, right = found
        return LowRank(left, weights, right, A.out_space, A.in_space), kept
    if Tag.SYMMETRIC in tags and matrix.is_complex() and not hermitian:
        found = (found + found.mT) / 2
    return Dense(found, A.out_space, A.in_space, tags), kept
