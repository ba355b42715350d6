"""What a method of solution hands back before it is checked, and the direct solutions with a matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hesse.core.errors import SymmetryError
from hesse.linalg.exponents import near_one, times
from hesse.linalg.pinv_matrix import require_finite
from hesse.linalg.products import row_norms, work_dtype

SINGULAR = "the matrix is singular to working precision"


@dataclass(frozen=True)
class Answer:
    """An unchecked solution.

    Attributes:
        value: ``[k, in]``, a solution in each row.
        condition: an estimate of the condition number, where the method has one: a number, or a function without arguments
            that finds it once somebody asks.
        iterations: steps of an iterative method.
        trouble: what stopped the method early; empty if nothing did.
        norm: for least squares, the 2-norm of the (damped) operator or a close lower bound, where the method has one.
        residual: ``|b - A x| / |b|`` with the true operator, the largest of the rows, where `solve` has just looked at it.
        truncated: how many of the ``min(out, in)`` singular values were dropped (those that are zero too); None if nobody
            counted.
        method: what `Solution.method` says; by default the method that `solve` or `lstsq` chose.
        inverse_norm: the 2-norm of the (pseudo-)inverse, or an upper bound: a number, or a function that finds it. By default
            the condition number over the norm.
        forward_error: finds a bound of ``|x - x_true| / |x|``, the largest of the rows; by default that of `error_bound`.
    """

    value: Tensor
    condition: Any = None
    iterations: int = 0
    trouble: str = ""
    norm: float | None = None
    residual: float | None = None
    truncated: int | None = None
    method: str = ""
    inverse_norm: float | Callable[[], float] | None = None
    forward_error: Callable[[], float] | None = None


def evaluated(late: Any) -> float | None:
    """A number that may have to be found first, by a function without arguments."""
    found: Any = late() if callable(late) else late
    return found


def rescaled(found: Answer, factor: complex) -> Answer:
    """The answer for ``factor * A`` from that for A: all but the sizes stays."""
    number = factor if found.value.is_complex() else complex(factor).real
    size, inverse = abs(factor), found.inverse_norm
    return replace(
        found,
        value=found.value / number,
        norm=None if found.norm is None else size * found.norm,
        inverse_norm=None if inverse is None else lambda: (evaluated(inverse) or 0.0) / size,
    )


def conjugated(found: Answer) -> Answer:
    """The complex conjugate of an answer."""
    return replace(found, value=found.value.conj().resolve_conj())


def side_by_side(answers: list[Answer], B: Tensor) -> Answer:
    """The answer for a block-diagonal operator from those for its blocks.

    Args:
        answers: one for each block.
        B: right-hand sides, which are the solution where there are no blocks.
    """
    norms = [found.norm for found in answers if found.norm is not None]
    truncated = [found.truncated for found in answers if found.truncated is not None]
    methods = {found.method for found in answers}
    return Answer(
        torch.cat([found.value for found in answers], dim=-1) if answers else B,
        None,
        max((found.iterations for found in answers), default=0),
        next((found.trouble for found in answers if found.trouble), ""),
        max(norms) if norms and len(norms) == len(answers) else None,
        truncated=sum(truncated) if len(truncated) == len(answers) else None,
        method="" if "" in methods else ", ".join(sorted(methods)),
        inverse_norm=_largest([_inverse_norm(found) for found in answers]),
        forward_error=_largest([found.forward_error for found in answers]),
    )


def _inverse_norm(found: Answer) -> Any:
    """As it was given, or by the condition number of a direct method; those of iterative methods are too small."""
    condition, norm = found.condition, found.norm
    if found.inverse_norm is not None or not norm or condition is None or found.iterations:
        return found.inverse_norm
    return lambda: (evaluated(condition) or 0.0) / norm


def _largest(parts: list[Any]) -> Callable[[], float] | None:
    """Finds the largest of numbers that may have to be found first; None if one is not known."""
    if not parts or any(part is None for part in parts):
        return None
    return lambda: max(float(evaluated(part) or 0.0) for part in parts)


def solve_matrix(matrix: Tensor, B: Tensor) -> Answer:
    """Rows x with ``matrix @ x = b`` for the rows b of ``B`` ``[k, out]``, by LU with partial pivoting.

    The condition number is that of the 1-norm. A matrix that is singular to working precision gets the
    least-squares solution of least norm, and says so in `trouble`.

    Raises:
        NonFiniteError: the matrix has a NaN or an infinity.
    """
    matrix, B = _working(matrix, B)
    if not len(matrix):
        return Answer(B, 1.0)
    given, (matrix, power) = matrix, _lifted(matrix)
    LU, pivots, info = torch.linalg.lu_factor_ex(matrix)
    condition, size = float("inf"), float("inf")
    if int(info) == 0:
        inverse = torch.linalg.lu_solve(LU, pivots, torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))
        condition = float(torch.linalg.matrix_norm(matrix, 1) * torch.linalg.matrix_norm(inverse, 1))
        size = float(row_norms(inverse.reshape(1, -1)))
    if not condition * torch.finfo(matrix.dtype).eps < 1:
        found = lstsq_matrix(given, B)
        return replace(found, condition=float("inf"), trouble=SINGULAR)
    value = times(torch.linalg.lu_solve(LU, pivots, B.mT).mT, power)
    return Answer(value, condition, truncated=0, inverse_norm=power * size)


def solve_cholesky(matrix: Tensor, B: Tensor) -> Answer:
    """Rows x with ``matrix @ x = b`` for the rows b of ``B``, by the Cholesky factor of a positive definite matrix.

    The condition number is that of the 1-norm.

    Raises:
        SymmetryError: the matrix is not Hermitian, or not positive definite to working precision.
        NonFiniteError: it has a NaN or an infinity.
    """
    matrix, B = _working(matrix, B)
    if not len(matrix):
        return Answer(B, 1.0)
    matrix, power = _lifted(matrix)
    asked, eps = "The Cholesky factor needs a positive definite matrix.", torch.finfo(matrix.dtype).eps
    size, skew = float(matrix.abs().max()), float((matrix - matrix.mH).abs().max())
    if skew > min(10 * eps**0.5, 0.5) * size:
        found = f"a matrix that differs from its adjoint by up to {skew / power:.2g}, with entries up to {size / power:.2g}"
        raise SymmetryError(asked, found, "use method='dense' or 'lsmr', or mend the tags of the operator")
    L, info = torch.linalg.cholesky_ex((matrix + matrix.mH) / 2)
    if int(info):
        least = float(torch.linalg.eigvalsh(matrix)[0])
        raise SymmetryError(
            asked,
            f"an eigenvalue of {least / power:.2g}, with entries up to {size / power:.2g}",
            "add damping (A + c * hesse.identity(A.in_space)), or use method='dense' or 'minres' if it is indefinite",
        )
    inverse = torch.cholesky_inverse(L)
    condition = float(torch.linalg.matrix_norm(matrix, 1) * torch.linalg.matrix_norm(inverse, 1))
    size = float(row_norms(inverse.reshape(1, -1)))
    return Answer(times(torch.cholesky_solve(B.mT, L).mT, power), condition, truncated=0, inverse_norm=power * size)


def lstsq_matrix(matrix: Tensor, B: Tensor, damping: float = 0.0) -> Answer:
    """Rows x that minimize ``|b - matrix @ x|^2 + damping |x|^2``, of least norm among those, by the singular values.

    Without damping, singular values below ``eps max(out, in)`` times the largest count as zero (as in LAPACK's gelsd).
    The condition number is that of the singular values kept, damped ones included.

    Raises:
        NonFiniteError: the matrix has a NaN or an infinity.
    """
    matrix, B = _working(matrix, B)
    matrix, power = (matrix, 1.0) if damping else _lifted(matrix)
    U, s, Vh = torch.linalg.svd(matrix, full_matrices=False)
    filtered, condition, norm = filter_factors(s, damping, max(matrix.shape))
    dropped = int((filtered == 0).sum()) if not damping else 0
    value = times((B @ U.conj() * filtered) @ Vh.conj(), power)
    return Answer(value, condition, 0, "", norm / power, truncated=dropped)


def filter_factors(s: Tensor, damping: float, dim: int) -> tuple[Tensor, float, float]:
    """``s / (s^2 + damping)``, with zeros for negligible singular values s; condition number and norm of the problem."""
    if not s.numel():
        return s, 1.0, damping**0.5
    largest = float(s.max())
    norm = math.hypot(largest, damping**0.5)
    kept = s > (0.0 if damping else largest * torch.finfo(s.dtype).eps * dim)
    if not bool(kept.any()):
        return torch.zeros_like(s), 1.0, norm
    safe = torch.where(kept, s, torch.ones_like(s))
    filtered = torch.where(kept, 1 / (safe + damping / safe), torch.zeros_like(s))
    return filtered, norm / math.hypot(float(s[kept].min()), damping**0.5), norm


def _lifted(matrix: Tensor) -> tuple[Tensor, float]:
    """The matrix times a power of two, and that: 1 unless the matrix is so small that its inverse may be out of range."""
    power = max(near_one(matrix, matrix.new_ones(len(matrix), 1)), 1.0)
    return times(matrix, power), power


def _working(matrix: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    require_finite(matrix)
    dtype = torch.promote_types(work_dtype(matrix.dtype), B.dtype)
    return matrix.detach().to(dtype), B.to(dtype)
