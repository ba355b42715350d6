"""Orthonormal vectors that an operator maps to zero."""

from __future__ import annotations

import torch

from hesse.core.memory import Budget
from hesse.core.tree import Tree
from hesse.linalg.dense import dense
from hesse.linalg.null_space_rules import matrix_null_space, null_space_rule
from hesse.linalg.pinv import check_cut, check_fields
from hesse.linalg.pinv_matrix import cut_of
from hesse.linalg.rank_rules import require_matrix
from hesse.operators import LinearOperator
from hesse.operators.spread import asked_together


@asked_together
def null_space(A: LinearOperator, *, rtol: float | None = None, memory: Budget | None = None) -> Tree:
    """An orthonormal basis of the vectors that `A` maps to zero, or nearly so; ``null_space(A.H)`` is that of the adjoint.

    Args:
        A: any operator, between real or between complex spaces.
        rtol: vectors whose singular value is at most `rtol` times the largest count as mapped to zero; by default the larger
            dimension times the unit of rounding of the dtype (16-bit: of float32). The basis has ``in - rank`` vectors for the
            same `rtol` (see `rank`, which also tells how clear the cut is).
        memory: budget for the matrix: bytes, fraction or text; by default the one in force.

    Returns:
        a tree of `A.in_space` with a leading axis, as long as the basis; 0 where only zero is mapped to zero. Which of the many
        bases it is depends on the method.

    Raises:
        StructureError, LeafError: a negative tolerance; spaces that are partly real and partly complex, or integers.
        NonFiniteError: an entry is NaN or infinite.
        MemoryBudgetError: no structure knows it, and the matrix does not fit.

    Cost: nothing but arithmetic where the structure is known; else ``min(out, in)`` products in blocks, and the singular
    vectors of the matrix.
    """
    check_fields(A, "null_space")
    check_cut("null_space", rtol)
    rows = null_space_rule(A, rtol, memory)
    if rows is None:
        require_matrix(A, "null_space", memory, 8)
        matrix = dense(A, memory=memory)
        rows = matrix_null_space(matrix, cut_of(A.shape, matrix.dtype, rtol))
    return A.in_space.unravel(rows.to(torch.promote_types(rows.dtype, A.in_space.dtype)))
