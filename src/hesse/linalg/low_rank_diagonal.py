"""A symmetric operator approximated by a few eigenpairs and a diagonal."""

from __future__ import annotations

import torch

from hesse.linalg.diagonal import diagonal
from hesse.linalg.eigen import eigsh
from hesse.operators import Diagonal, LinearOperator, LowRank, Sum, Tag


def low_rank_plus_diagonal(
    A: LinearOperator, k: int, *, rtol: float | None = None, generator: torch.Generator | None = None
) -> Sum:
    """``U diag(s) U^T + diag(d)``: the k eigenpairs of largest magnitude, and what the diagonal of A leaves of them.

    The diagonal of the result is that of A (for a positive semi-definite A no entry of d is below zero, but for rounding, which
    is set to zero). It is saved, damped (``+ c * identity``) and solved (by the identity of Woodbury) as it is.

    Args:
        A: a real operator tagged symmetric.
        k: how many eigenpairs.
        rtol: of the eigenpairs, see `eigsh`.
        generator: source of the starting vectors, and of the signs if the diagonal has to be estimated.

    Returns:
        The sum of a `LowRank` and a `Diagonal` operator.

    Raises:
        SymmetryError: the operator is not tagged symmetric. StructureError, NotConvergedError: as `eigsh`.

    Cost: as `eigsh` and the exact `diagonal`.
    """
    pairs = eigsh(A, k, which="magnitude", rtol=rtol, generator=generator)
    rows = A.in_space.ravel(pairs.vectors, 1)
    rest = diagonal(A).to(rows.dtype) - (pairs.values.to(rows)[:, None] * rows.square()).sum(0)
    is_psd = Tag.PSD in A.tags
    entries = A.in_space.unravel(rest.clamp(min=0) if is_psd else rest)
    values = pairs.values.to(rows).clamp(min=0) if is_psd else pairs.values.to(rows)
    kept = Diagonal(entries, frozenset({Tag.PSD}) if is_psd else frozenset())
    return Sum(LowRank(rows.mT.contiguous(), values, in_space=A.in_space), kept)
