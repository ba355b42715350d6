"""What a factorization answers by its factors, and what factorizations and pseudo-inverses leave to the operator inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from hesse.core.memory import Budget
from hesse.core.tree import Tree
from hesse.linalg.answer import SINGULAR, Answer
from hesse.linalg.condition import condition_rule
from hesse.linalg.dense import dense_rule
from hesse.linalg.diagonal_rules import column_squares_rule, diagonal_rule
from hesse.linalg.eigenvalues import eigenvalues_rule, floor_rule
from hesse.linalg.factor import Factorization
from hesse.linalg.logdet_rules import logdet_rule
from hesse.linalg.lstsq_rules import lstsq_rule
from hesse.linalg.norm_rules import norm_rule
from hesse.linalg.null_space_rules import null_space_rule
from hesse.linalg.pinv_parts import part_pinv
from hesse.linalg.pinv_rules import pinv_rule
from hesse.linalg.rank_rules import rank_rule, values_rule
from hesse.linalg.slogdet_rules import slogdet_rule
from hesse.linalg.solve_rules import solve_rule
from hesse.linalg.sparse_entries import entries_rule
from hesse.linalg.svd_rules import svd_rule
from hesse.linalg.trace_rules import trace_rule
from hesse.operators import LinearOperator
from hesse.operators.pseudo_inverse import Kept, PseudoInverse
from hesse.operators.storage import storable


def _told(A: Factorization, found: Answer) -> Answer:
    late: Callable[[], float | None] = lambda: A.condition  # noqa: E731
    condition = late if found.condition is None else found.condition
    truncated = A.truncated if found.truncated is None else found.truncated
    return replace(found, condition=condition, truncated=truncated, method=found.method or A.method)


@solve_rule.register(Factorization)
def _solve(A: Factorization, B: Tensor, inner: Any) -> Answer:
    found = _told(A, A.answer(B))
    return replace(found, trouble=found.trouble or SINGULAR) if A.truncated else found


@lstsq_rule.register(Factorization)
def _lstsq(A: Factorization, B: Tensor, damping: float, inner: Any) -> Answer | None:
    found = A.damped(B, damping) if damping else A.answer(B)
    if found is None:
        return None
    return replace(_told(A, found), norm=A.norm_bound if found.norm is None else found.norm)


class _Inverse(LinearOperator):
    """``b -> A^+ b`` by the factors of A, unchecked.

    Args:
        factors: of A.
    """

    def __init__(self, factors: Factorization) -> None:
        self.factors = factors
        self.in_space, self.out_space = factors.out_space, factors.in_space
        self.tags = factors.tags if factors.in_space == factors.out_space else frozenset()

    def mv(self, v: Tree) -> Tree:
        return self.out_space.unravel(self.factors.answer(self.in_space.ravel(v)[None]).value[0])

    def mm(self, V: Tree) -> Tree:
        return self.out_space.unravel(self.factors.answer(self.in_space.ravel(V, 1)).value)

    def transpose(self) -> LinearOperator:
        transposed = self.factors.T
        assert isinstance(transposed, Factorization)
        return _Inverse(transposed)


@storable.register(_Inverse)
def _stored(A: _Inverse) -> dict[str, object]:
    return {"factors": A.factors}


@pinv_rule.register(Factorization)
def _pinv(A: Factorization, rtol: float | None, memory: Budget | None) -> LinearOperator | None:
    if rtol is not None:
        return part_pinv(A.operator, rtol, memory)
    gap = float("inf") if not A.truncated else None
    return PseudoInverse(_Inverse(A), Kept(min(A.shape) - A.truncated, A.truncated, None, lambda: A.condition, gap), A.method)


def _pass(rule: Any, kind: type[LinearOperator], inside: str) -> None:
    """Let `rule` ask the operator inside of operators of one kind."""
    rule.register(kind, lambda A, *rest: rule(getattr(A, inside), *rest))


_RULES = (
    column_squares_rule, condition_rule, dense_rule, diagonal_rule, eigenvalues_rule, entries_rule, floor_rule, logdet_rule,
    norm_rule, null_space_rule, rank_rule, slogdet_rule, svd_rule, trace_rule, values_rule,
)  # fmt: skip
for _rule in _RULES:
    _pass(_rule, Factorization, "operator")
    _pass(_rule, PseudoInverse, "inverse")
for _rule in (solve_rule, lstsq_rule):
    _pass(_rule, PseudoInverse, "inverse")
