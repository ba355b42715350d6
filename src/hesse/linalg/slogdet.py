"""Sign and logarithm of the determinant of any square operator."""

from __future__ import annotations

import torch

from hesse.core.memory import Budget
from hesse.linalg.dense import dense
from hesse.linalg.options import require_square
from hesse.linalg.pinv import check_fields
from hesse.linalg.rank_rules import require_matrix
from hesse.linalg.slogdet_rules import SignLog, matrix_slogdet, slogdet_rule
from hesse.operators import LinearOperator
from hesse.operators.spread import asked_together


@asked_together
def slogdet(A: LinearOperator, *, memory: Budget | None = None) -> SignLog:
    """The sign and the logarithm of the modulus of the determinant, as `torch.linalg.slogdet` gives them for a matrix.

    Args:
        A: any square operator, between real or between complex spaces; its determinant is that of its matrix in the order of
            the flat vectors of its spaces.
        memory: budget for the matrix: bytes, fraction or text; by default the one in force.

    Returns:
        a `SignLog` of 0-d tensors. A singular operator has sign 0 and logarithm minus infinity, if rounding does not hide it.

    Raises:
        StructureError, LeafError: not square; spaces that are partly real and partly complex, or integers.
        NonFiniteError: an entry is NaN or infinite.
        MemoryBudgetError: no structure knows it, and the matrix does not fit.

    Cost: nothing but arithmetic where the structure is known (diagonal, dense, Kronecker, block-diagonal, scaled, products of
    such); LU factors of sparse ones; else dim products in blocks, and LU factors of the matrix. Differentiable by the tensors
    of the operator; for sparse ones that require grad through the dense matrix.
    """
    check_fields(A, "slogdet")
    require_square(A, "slogdet", "take half of slogdet(A.H @ A) or slogdet(A @ A.H) for the volume that A spans")
    known = slogdet_rule(A)
    if known is not None:
        return known
    require_matrix(A, "slogdet", memory)
    return matrix_slogdet(dense(A, memory=memory).to(torch.promote_types(A.in_space.dtype, A.out_space.dtype)))
