"""The share of every sample in the diagonal of a curvature matrix."""

from __future__ import annotations

from functools import singledispatch

import torch

from hesse.core.errors import UnsupportedError
from hesse.core.memory import Budget, chunk_size, current_budget
from hesse.core.tree import Tree
from hesse.curvature.batch import OfBatch
from hesse.curvature.gauss_newton import GaussNewton
from hesse.curvature.hessian import LossHessian
from hesse.operators.algebra import Congruence, Scaled
from hesse.operators.base import LinearOperator
from hesse.parameters.contractions import Use, row_blocks
from hesse.parameters.jacobian import ParameterJacobian

_ASKED = "diagonal_by_sample(A) takes a curvature matrix of one batch."


def diagonal_by_sample(A: LinearOperator, *, memory: Budget | None = None) -> Tree:
    """Every sample's share in the diagonal of a curvature matrix, as a tree like the parameters with leaves ``[N, *shape]``.

    The shares are not divided by the loss's normalizer: ``hesse.diagonal(A)`` is their sum over samples, divided by ``A.mass``.

    Args:
        A: the Gauss-Newton or a Fisher matrix of one batch; the Hessian of a model that is piecewise linear in each parameter.
        memory: budget for the result.

    Raises:
        UnsupportedError: a data set, or a matrix without rows. MemoryBudgetError: the result is larger than the budget.

    Cost: one backward pass without weight gradients for each output of a sample ("sampled": each cotangent), whose rows are
    formed.
    """
    rows = _rows_of(A)
    size = rows.count * rows.in_space.dim * rows.in_space.dtype.itemsize
    chunk_size(1, size, 0, current_budget(memory, rows.in_space.device), "the diagonal by sample")
    leaves = {
        name: torch.zeros(rows.count, *shape, dtype=dtype, device=rows.in_space.device)
        for name, shape, dtype in zip(rows.in_space.names, rows.in_space.shapes, rows.in_space.dtypes, strict=True)
    }

    def add(root: int, name: str, use: Use) -> None:
        table = leaves[name].reshape(rows.count, -1)
        for samples, part in row_blocks(use, table.shape[1]):
            table[samples] += part.square()

    rows.source.visit(add)
    return rows.in_space.rebuild(list(leaves.values()))


@singledispatch
def _rows_of(A: LinearOperator) -> ParameterJacobian:
    found = f"{type(A).__name__} of shape {A.shape}"
    raise UnsupportedError(_ASKED, found, "pass ggn(model, loss, batch), or fisher of one batch, of any kind but 'observed'")


@_rows_of.register(GaussNewton)
def _gauss_newton(A: GaussNewton) -> ParameterJacobian:
    return A.rows()


@_rows_of.register(LossHessian)
def _hessian(A: LossHessian) -> ParameterJacobian:
    same = A.same_diagonal()
    if same is None:
        raise UnsupportedError(_ASKED, "the Hessian of a model that is not piecewise linear", "use ggn(model, loss, batch)")
    return same.rows()


@_rows_of.register(OfBatch)
def _of_batch(A: OfBatch) -> ParameterJacobian:
    inner = A.operator.operator if isinstance(A.operator, Scaled) else A.operator
    outer = inner.outer if isinstance(inner, Congruence) and inner.middle is None else None
    if not isinstance(outer, ParameterJacobian):
        raise UnsupportedError(_ASKED, repr(A), "use ggn(model, loss, batch)")
    return outer
