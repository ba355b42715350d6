"""Pseudo-inverses of large square sums, products and matrices of few entries: the inverse, by their LU factors."""

from __future__ import annotations

import torch

from hesse.core.memory import Budget, current_budget
from hesse.linalg.factor_sparse import factor_sparse
from hesse.linalg.pinv_general import DENSE_DIM, matrix_bytes
from hesse.linalg.pinv_rules import pinv_rule
from hesse.operators import Composed, LinearOperator, Sparse, Sum

_ANY = pinv_rule.dispatch(LinearOperator)


@pinv_rule.register(Sum)
@pinv_rule.register(Composed)
@pinv_rule.register(Sparse)
def _regular(A: LinearOperator, rtol: float | None, memory: Budget | None) -> LinearOperator | None:
    """Where the matrix is too large for its singular values, and the condition number leaves no doubt that all are kept."""
    known = _ANY(A, rtol, memory)
    fits = matrix_bytes(A) <= current_budget(memory, A.in_space.device)
    if known is not None or rtol is not None or (fits and min(A.shape) <= DENSE_DIM):
        return known
    factors = factor_sparse(A)
    unit = torch.finfo(A.in_space.dtype).eps
    if factors is None or not factors.condition * max(A.shape) * unit < 1:
        return None
    return pinv_rule(factors, None, memory)
