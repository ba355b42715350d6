"""What a method of solution hands back before it is checked, and the direct solutions with a matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.core.errors import SymmetryError
from hesse.linalg.products import work_dtype


@dataclass(frozen=True)
class Answer:
    """An unchecked solution.

    Attributes:
        value: ``[k, in]``, a solution in each row.
        condition: an estimate of the condition number, where the method has one.
        iterations: steps of an iterative method.
        trouble: what stopped the method early; empty if nothing did.
        norm: for least squares, the 2-norm of the (damped) operator or a close lower bound, where the method has one.
        residual: ``|b - A x| / |b|`` with the true operator, the largest of the rows, where `solve` has just looked at it.
    """

    value: Tensor
    condition: float | None = None
    iterations: int = 0
    trouble: str = ""
    norm: float | None = None
    residual: float | None = None


def solve_matrix(matrix: Tensor, B: Tensor) -> Answer:
    """Rows x with ``matrix @ x = b`` for the rows b of ``B`` ``[k, out]``, by LU with partial pivoting.

    The condition number is that of the 1-norm. A matrix that is singular to working precision gets the
    least-squares solution of least norm, and says so in `trouble`.
    """
    matrix, B = _working(matrix, B)
    if not len(matrix):
        return Answer(B, 1.0)
    LU, pivots, info = torch.linalg.lu_factor_ex(matrix)
    condition = float("inf")
    if int(info) == 0:
        inverse = torch.linalg.lu_solve(LU, pivots, torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))
        condition = float(torch.linalg.matrix_norm(matrix, 1) * torch.linalg.matrix_norm(inverse, 1))
    if not condition * torch.finfo(matrix.dtype).eps < 1:
        solution = (torch.linalg.pinv(matrix) @ B.mT).mT
        return Answer(solution, float("inf"), 0, "the matrix is singular to working precision")
    return Answer(torch.linalg.lu_solve(LU, pivots, B.mT).mT, condition)


def solve_cholesky(matrix: Tensor, B: Tensor) -> Answer:
    """Rows x with ``matrix @ x = b`` for the rows b of ``B``, by the Cholesky factor of a positive definite matrix.

    The condition number is that of the 1-norm.

    Raises:
        SymmetryError: the matrix is not Hermitian, or not positive definite to working precision.
    """
    matrix, B = _working(matrix, B)
    if not len(matrix):
        return Answer(B, 1.0)
    asked, eps = "The Cholesky factor needs a positive definite matrix.", torch.finfo(matrix.dtype).eps
    size, skew = float(matrix.abs().max()), float((matrix - matrix.mH).abs().max())
    if skew > min(10 * eps**0.5, 0.5) * size:
        found = f"a matrix that differs from its adjoint by up to {skew:.2g}, with entries up to {size:.2g}"
        raise SymmetryError(asked, found, "use method='dense' or 'lsmr', or mend the tags of the operator")
    L, info = torch.linalg.cholesky_ex((matrix + matrix.mH) / 2)
    if int(info):
        least = float(torch.linalg.eigvalsh(matrix)[0])
        raise SymmetryError(
            asked,
            f"an eigenvalue of {least:.2g}, with entries up to {size:.2g}",
            "add damping (A + c * hesse.identity(A.in_space)), or use method='dense' or 'minres' if it is indefinite",
        )
    inverse = torch.cholesky_inverse(L)
    condition = float(torch.linalg.matrix_norm(matrix, 1) * torch.linalg.matrix_norm(inverse, 1))
    return Answer(torch.cholesky_solve(B.mT, L).mT, condition)


def lstsq_matrix(matrix: Tensor, B: Tensor, damping: float = 0.0) -> Answer:
    """Rows x that minimize ``|b - matrix @ x|^2 + damping |x|^2``, of least norm among those, by the singular values.

    Without damping, singular values below ``eps max(out, in)`` times the largest count as zero (as in LAPACK's gelsd).
    The condition number is that of the singular values kept, damped ones included.
    """
    matrix, B = _working(matrix, B)
    U, s, Vh = torch.linalg.svd(matrix, full_matrices=False)
    filtered, condition, norm = filter_factors(s, damping, max(matrix.shape))
    return Answer((B @ U.conj() * filtered) @ Vh.conj(), condition, 0, "", norm)


def filter_factors(s: Tensor, damping: float, dim: int) -> tuple[Tensor, float, float]:
    """``s / (s^2 + damping)``, with zeros for negligible singular values s; condition number and norm of the problem."""
    if not s.numel():
        return s, 1.0, damping**0.5
    largest = float(s.max())
    norm = (largest**2 + damping) ** 0.5
    kept = s > (0.0 if damping else largest * torch.finfo(s.dtype).eps * dim)
    if not bool(kept.any()):
        return torch.zeros_like(s), 1.0, norm
    safe = torch.where(kept, s, torch.ones_like(s))
    filtered = torch.where(kept, 1 / (safe + damping / safe), torch.zeros_like(s))
    return filtered, norm / (float(s[kept].min()) ** 2 + damping) ** 0.5, norm


def _working(matrix: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(work_dtype(matrix.dtype), B.dtype)
    return matrix.detach().to(dtype), B.to(dtype)
