"""The pseudo-inverse of an operator that no structure knows: by its matrix, or by LSMR, one problem a product."""

from __future__ import annotations

from hesse.core.errors import MemoryBudgetError, NotConvergedError, UnsupportedError
from hesse.core.memory import Budget, current_budget, format_bytes, given_budget
from hesse.core.tree import Tree
from hesse.linalg.dense import dense
from hesse.linalg.lstsq import lstsq
from hesse.linalg.pinv_matrix import cut_of, dense_pinv
from hesse.linalg.products import work_dtype
from hesse.operators import LinearOperator
from hesse.operators.pseudo_inverse import Kept, PseudoInverse

DENSE_DIM = 3000  # the smaller dimension, up to which the singular values take a minute or two on two cores
_COPIES = 5  # of the matrix: itself, its singular vectors, the inverse, and what LAPACK works with
_HIGHEST = 11  # of them at the highest, measured: what a budget that the user sets has to hold


def general_pinv(A: LinearOperator, rtol: float | None, memory: Budget | None) -> LinearOperator:
    """By the singular values of the matrix where these are affordable, else by LSMR at every product.

    Raises:
        MemoryBudgetError: a cut-off was asked for, and the matrix does not fit. UnsupportedError: likewise, and the matrix is
            too large for its singular values.
    """
    needed = matrix_bytes(A, _COPIES if given_budget(memory, A.in_space.device) is None else _HIGHEST)
    fits = needed <= current_budget(memory, A.in_space.device)
    if fits and min(A.shape) <= DENSE_DIM:
        matrix = dense(A, memory=memory)
        inverse, kept = dense_pinv(A, matrix, cut_of(A.shape, matrix.dtype, rtol))
        return PseudoInverse(inverse, kept, "dense")
    if rtol is None:
        return PseudoInverse(_ByLsmr(A), Kept(None, None), "lsmr")
    asked = f"The pseudo-inverse of {type(A).__name__} with a cut-off needs the singular values of its matrix."
    found = f"a matrix of shape {A.shape}, which takes {format_bytes(needed)} with its singular vectors"
    remedy = "use rtol=None (LSMR at each product), or hesse.lstsq(A, b, damping=...)"
    if fits:
        raise UnsupportedError(asked, found, f"{remedy}, or wait for hesse.pinv(Dense(hesse.dense(A)), rtol=...)")
    raise MemoryBudgetError(asked, found, f"pass memory={needed} or more, {remedy}", needed)


def matrix_bytes(A: LinearOperator, copies: int = _COPIES) -> int:
    """Bytes that the matrix and its singular value decomposition take."""
    itemsize = max(work_dtype(A.in_space.dtype).itemsize, work_dtype(A.out_space.dtype).itemsize)
    return copies * A.shape[0] * A.shape[1] * itemsize


class _ByLsmr(LinearOperator):
    """``b -> A^+ b`` by LSMR, certified at each product.

    Args:
        operator: A.
    """

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self.in_space, self.out_space = operator.out_space, operator.in_space
        self.tags = operator.tags if operator.in_space == operator.out_space else frozenset()

    def mv(self, v: Tree) -> Tree:
        return self._solved(v)

    def mm(self, V: Tree) -> Tree:
        return self._solved(V)

    def _solved(self, b: Tree) -> Tree:
        try:
            return lstsq(self.operator, b, method="lsmr")
        except NotConvergedError as error:
            remedy = (
                "use hesse.lstsq(A, b) with damping= or max_iterations=; or hesse.pinv(A, memory=...) with room for the matrix"
            )
            if min(self.operator.shape) > DENSE_DIM:
                remedy = "use hesse.lstsq(A, b) with damping= or max_iterations=, or hesse.pinv(Dense(hesse.dense(A)))"
            raise NotConvergedError(error.asked, error.found, f"{remedy}, or float64", error.partial) from error

    def transpose(self) -> LinearOperator:
        return _ByLsmr(self.operator.T)
