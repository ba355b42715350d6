"""Factorizations of square operators with few entries, by SuperLU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hesse.linalg.answer import Answer
from hesse.linalg.factor import Factorization, factor
from hesse.linalg.options import is_hermitian
from hesse.linalg.sparse_direct import _factor, _Factors
from hesse.linalg.sparse_entries import entries_rule
from hesse.operators import LinearOperator
from hesse.operators.storage import storable


class SparseFactorization(Factorization):
    """SuperLU's factors ``P A Q = L U`` of the entries (Demmel et al. 1999).

    They live in SciPy and cannot be saved: a file holds the operator, whose entries are factored again at loading.

    Args:
        operator: whose entries `entries_rule` knows.
        factors: of them.
    """

    def __init__(self, operator: LinearOperator, factors: _Factors) -> None:
        super().__init__(operator, "superlu")
        self.factors = factors

    @classmethod
    def from_stored(cls, operator: LinearOperator) -> LinearOperator:
        """The factors of the entries that were saved."""
        return factor(operator)

    @property
    def condition(self) -> float:
        """In the 1-norm, estimated from below (Hager 1984; Higham 1988)."""
        return self.factors.condition

    def answer(self, B: Tensor, *, adjoint: bool = False) -> Answer:
        """By the triangular factors, on the CPU."""
        numbers: Any = B.detach().resolve_conj().cpu().numpy().T
        dtype = self.factors.matrix.dtype
        if np.iscomplexobj(numbers) and not np.issubdtype(dtype, np.complexfloating):
            value = self._solve(numbers.real, adjoint, dtype) + 1j * self._solve(numbers.imag, adjoint, dtype)
        else:
            value = self._solve(numbers, adjoint, dtype)
        found = torch.from_numpy(np.ascontiguousarray(value.T)).to(B.device)
        return Answer(found, self.condition, truncated=0)

    def _solve(self, numbers: Any, adjoint: bool, dtype: Any) -> Any:
        kind = "N" if not adjoint else "H" if np.issubdtype(dtype, np.complexfloating) else "T"
        return self.factors.lu.solve(np.ascontiguousarray(numbers.astype(dtype, copy=False)), kind)

    def log_abs_det(self) -> float:
        """From the pivots."""
        return float(np.log(np.abs(self.factors.lu.U.diagonal()), dtype=np.float64).sum())


def factor_sparse(A: LinearOperator) -> SparseFactorization | None:
    """SuperLU's factors; None where no rule knows the entries, or A is not square, or singular to working precision.

    Raises:
        NonFiniteError: an entry is NaN or infinite. MemoryBudgetError: the factors do not fit into memory.
    """
    entries = entries_rule(A) if A.shape[0] == A.shape[1] and A.shape[0] else None
    if entries is None:
        return None
    matrix = entries.tocsc(copy=True)
    matrix.sum_duplicates()
    factors = _factor(matrix, is_hermitian(A))
    if factors.lu is None or not factors.condition * np.finfo(matrix.dtype).eps < 1:
        return None
    return SparseFactorization(A, factors)


@storable.register(SparseFactorization)
def _stored(A: SparseFactorization) -> dict[str, object]:
    return {"operator": A.operator}
