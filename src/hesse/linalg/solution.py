"""A checked solution, and what `solve` and `lstsq` share: their right-hand sides, tolerances and true residuals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.core.errors import NonFiniteError
from hesse.core.tree import Tree
from hesse.linalg.options import rounding
from hesse.linalg.products import apply, row_norms, work_dtype
from hesse.operators import LinearOperator


@dataclass(frozen=True, eq=False)
class Solution:
    """A solution with what is known of it.

    Attributes:
        value: the solution, a tree of `A.in_space` (batch axes of b in front).
        residual: ``|b - A x| / |b|`` with the true operator, the largest over the batch.
        iterations: steps of the iterative method; 0 for a direct one.
        condition: an estimate of the condition number (matrices: in the 1-norm, least squares in the 2-norm of
            what was not cut off; iterative methods: a lower bound or estimate of that in the 2-norm, of the
            preconditioned or damped operator), or None.
        method: ``"structure"``, ``"dense"``, ``"cholesky"``, ``"woodbury"``, ``"cg"``, ``"minres"`` or ``"lsmr"``.
        normal_residual: of `lstsq`: ``|A^H (b - A x) - c x| / (|A'| |r'|)`` with damping c, where A' and r' are the
            operator and the residual with the damping rows ``sqrt(c)``; the largest over the batch. Zero at
            the solution; as large as the smallest relative change of the operator for which x is exact (Stewart
            1977). None for `solve`.
    """

    value: Tree
    residual: float
    iterations: int
    condition: float | None
    method: str
    normal_residual: float | None = None


def default_rtol(A: LinearOperator) -> float:
    """1e-8, or the root of the rounding unit of the coarsest leaf dtype where that is larger."""
    eps = rounding(A)
    return 1e-8 if eps < 1e-15 else max(1e-8, eps**0.5)


def right_hand_sides(A: LinearOperator, b: Tree, question: str) -> tuple[Tensor, torch.Size]:
    """``[k, out]`` in the working dtype, and the batch axes that b had.

    Raises:
        StructureError: b is not in the space that A maps to.
        NonFiniteError: b has a NaN or an infinity.
    """
    parts = A.out_space.check(b, "the right-hand side", None)
    lead = parts[0].ndim - len(A.out_space.shapes[0]) if parts else 0
    batch = parts[0].shape[:lead] if parts else torch.Size()
    flat = A.out_space.ravel(A.out_space.rebuild(parts), lead).detach()
    if not bool(torch.isfinite(flat).all()):
        raise NonFiniteError(f"{question} needs a finite right-hand side.", "NaN or infinity in b", "look where b comes from")
    return flat.reshape(batch.numel(), A.shape[0]).to(work_dtype(flat.dtype)), batch


def relative_residual(A: LinearOperator, B: Tensor, X: Tensor) -> float:
    """The largest ``|b - A x| / |b|``; 0 for b = 0 = A x."""
    return largest_ratio(row_norms(B - apply(A, X)), row_norms(B)) if B.numel() else 0.0


def largest_ratio(missed: Tensor, size: Tensor) -> float:
    """The largest ``missed / size``, where 0 / 0 is 0."""
    return float(torch.where(missed == 0, missed, missed / size).max()) if missed.numel() else 0.0
