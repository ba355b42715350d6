"""Factorizations of diagonal operators, and which structure is looked for first."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.core.memory import Budget
from hesse.linalg.answer import Answer, filter_factors
from hesse.linalg.diagonal import diagonal_rule
from hesse.linalg.factor import Factorization, factor_rule
from hesse.linalg.factor_sparse import factor_sparse
from hesse.linalg.pinv_matrix import require_finite
from hesse.linalg.products import work_dtype
from hesse.operators import LinearOperator, Tag
from hesse.operators.storage import storable


class DiagonalFactorization(Factorization):
    """The entries of a diagonal operator; those that are zero count as such.

    Args:
        operator: diagonal.
        entries: ``[dim]``, in the working dtype.
    """

    def __init__(self, operator: LinearOperator, entries: Tensor) -> None:
        super().__init__(operator, "diagonal")
        self.entries = entries
        self.truncated = int((entries == 0).sum())

    @property
    def condition(self) -> float:
        """In the 2-norm, of the entries that are not zero."""
        return filter_factors(self.entries.abs(), 0.0, 0)[1]

    def answer(self, B: Tensor, *, adjoint: bool = False) -> Answer:
        """Entry by entry."""
        entries = self.entries.conj() if adjoint else self.entries
        zero = entries == 0
        value = torch.where(zero, torch.zeros_like(B), B / torch.where(zero, torch.ones_like(entries), entries))
        _, condition, norm = filter_factors(entries.abs(), 0.0, 0)
        return Answer(value, condition, norm=norm, truncated=self.truncated)

    def log_abs_det(self) -> float:
        """The sum of the logarithms of the entries."""
        return float(self.entries.abs().double().log().sum())


@factor_rule.register(LinearOperator)
def _structure(A: LinearOperator, memory: Budget | None) -> Factorization | None:
    """Of diagonal operators, and of those with few entries."""
    entries = diagonal_rule(A) if Tag.DIAGONAL in A.tags and A.in_space == A.out_space else None
    if entries is None:
        return factor_sparse(A)
    entries = entries.detach().to(work_dtype(entries.dtype), copy=True)
    require_finite(entries)
    return DiagonalFactorization(A, entries)


@storable.register(DiagonalFactorization)
def _stored(A: DiagonalFactorization) -> dict[str, object]:
    return {"operator": A.operator, "entries": A.entries}
