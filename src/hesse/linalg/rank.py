"""The numerical rank of an operator."""

from __future__ import annotations

import math

from hesse.core.memory import Budget
from hesse.linalg.dense import dense
from hesse.linalg.pinv import check_cut, check_fields
from hesse.linalg.pinv_rules import pinv_rule
from hesse.linalg.rank_rules import Rank, matrix_values, rank_of, rank_rule, require_matrix
from hesse.operators import LinearOperator
from hesse.operators.spread import asked_together


@asked_together
def rank(A: LinearOperator, *, rtol: float | None = None, memory: Budget | None = None) -> Rank:
    """How many singular values are above `rtol` times the largest one.

    Args:
        A: any operator, between real or between complex spaces.
        rtol: by default the larger dimension times the unit of rounding of the dtype (16-bit: of float32), as in
            `torch.linalg.matrix_rank`.
        memory: budget for the matrix: bytes, fraction or text; by default the one in force.

    Returns:
        an int with the attribute `gap`: the smallest singular value that counts over the largest that does not (infinite if
        those are zero, or none). Near 1 the rank is a matter of taste.

    Raises:
        StructureError, LeafError: a negative tolerance; spaces that are partly real and partly complex, or integers.
        NonFiniteError: an entry is NaN or infinite.
        MemoryBudgetError: no structure knows it, and the matrix does not fit.

    Cost: nothing but arithmetic where the structure is known; else ``min(out, in)`` products in blocks, and the singular values
    of the matrix.
    """
    check_fields(A, "rank")
    check_cut("rank", rtol)
    known = rank_rule(A, rtol, memory)
    if known is not None:
        return known if isinstance(known, Rank) else Rank(known)
    inverse = pinv_rule(A, rtol, memory)
    found = getattr(inverse, "rank", None)
    if found is not None:
        gap = getattr(inverse, "gap", None)
        return Rank(found, math.nan if gap is None else gap)
    require_matrix(A, "rank", memory)
    return rank_of(A, matrix_values(dense(A, memory=memory)), rtol)
