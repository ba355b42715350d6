"""What a method of solution hands back before it is checked, and the direct solution with a matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.linalg.products import work_dtype


@dataclass(frozen=True)
class Answer:
    """An unchecked solution.

    Attributes:
        value: ``[k, in]``, a solution in each row.
        condition: an estimate of the condition number, where the method has one.
        iterations: steps of an iterative method.
        trouble: what stopped the method early; empty if nothing did.
    """

    value: Tensor
    condition: float | None = None
    iterations: int = 0
    trouble: str = ""


def solve_matrix(matrix: Tensor, B: Tensor) -> Answer:
    """Rows x with ``matrix @ x = b`` for the rows b of ``B`` ``[k, out]``, by LU with partial pivoting.

    The condition number is that of the 1-norm. A matrix that is singular to working precision gets the
    least-squares solution of least norm, and says so in `trouble`.
    """
    dtype = torch.promote_types(work_dtype(matrix.dtype), B.dtype)
    matrix, B = matrix.detach().to(dtype), B.to(dtype)
    if not len(matrix):
        return Answer(B, 1.0)
    LU, pivots, info = torch.linalg.lu_factor_ex(matrix)
    condition = float("inf")
    if int(info) == 0:
        inverse = torch.linalg.lu_solve(LU, pivots, torch.eye(len(matrix), dtype=dtype, device=matrix.device))
        condition = float(torch.linalg.matrix_norm(matrix, 1) * torch.linalg.matrix_norm(inverse, 1))
    if not condition * torch.finfo(dtype).eps < 1:
        solution = (torch.linalg.pinv(matrix) @ B.mT).mT
        return Answer(solution, float("inf"), 0, "the matrix is singular to working precision")
    return Answer(torch.linalg.lu_solve(LU, pivots, B.mT).mT, condition)
