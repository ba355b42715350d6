"""Linear algebra: each matrix of a batch by itself, inside of which everything depends on everything."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.rules.sparsity.forms import Call, Grouped, Link, everything, sparsity_rules

_OF_MATRICES = (
    "cholesky", "cholesky_inverse", "linalg_cholesky_ex", "linalg_inv_ex", "linalg_inv", "linalg_matrix_exp", "linalg_qr",
    "geqrf", "linalg_eig", "linalg_eigvals", "_linalg_eigvals", "_linalg_eigh", "_linalg_svd", "_linalg_det", "_linalg_slogdet",
    "linalg_lu", "linalg_lu_factor_ex", "linalg_ldl_factor_ex", "linalg_householder_product",
)  # fmt: skip
_SOLVES = ("_linalg_solve_ex", "linalg_solve_triangular", "cholesky_solve", "triangular_solve", "linalg_lu_solve", "lu_unpack",
           "linalg_ldl_solve", "ormqr")  # fmt: skip


@sparsity_rules.register(*_OF_MATRICES)
def of_matrices(call: Call) -> list[Link]:
    """Every result on the matrix with the same leading places."""
    x = call.operands[0]
    batch = x.shape[:-2]
    if any(y.shape[: len(batch)] != batch for y in call.outputs) or any(t.shape[: len(batch)] != batch for t in call.operands):
        return everything(call)
    return [(index, t, Grouped(_matrix(t, len(batch)), _matrix(y, len(batch))))
            for index, y in enumerate(call.outputs) for t in call.operands]  # fmt: skip


@sparsity_rules.register(*_SOLVES)
def solves(call: Call) -> list[Link]:
    """Results on the matrices with the same leading places, where operands have them all and none is broadcast."""
    moved = [t for t in call.operands if t.is_floating_point() or t.is_complex()]
    first = call.outputs[0]
    batch = first.shape[:-2]
    ndims = {t.ndim for t in (*moved, first)}
    if len(ndims) > 1 or any(t.shape[: len(batch)] != batch for t in (*moved, *call.outputs)):
        return everything(call, moved)
    return [(index, t, Grouped(_matrix(t, len(batch)), _matrix(y, len(batch))))
            for index, y in enumerate(call.outputs) for t in moved]  # fmt: skip


def _matrix(t: Tensor, batch: int) -> Tensor:
    count = t.shape[:batch].numel()
    return torch.arange(count).view([*t.shape[:batch], *[1] * (t.ndim - batch)]).expand(t.shape)
