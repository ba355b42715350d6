"""What the entries of a sparse operator tell: its matrix, diagonal, norm and Gram matrix.

Systems and determinants go through `entries_rule`, which sums and products of sparse operators know as well.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hesse.core.memory import Budget
from hesse.linalg.dense import dense_rule
from hesse.linalg.diagonal_rules import column_squares_rule, diagonal_rule
from hesse.linalg.norm_rules import Order, norm_rule
from hesse.linalg.woodbury import gram_rule
from hesse.operators import Sparse


@dense_rule.register(Sparse)
def _dense(A: Sparse, memory: Budget | None = None) -> Tensor:
    empty = torch.zeros(A.shape, dtype=torch.promote_types(A.values.dtype, A.out_space.dtype), device=A.values.device)
    return empty.index_put(tuple(A.indices), A.values.to(empty.dtype), accumulate=True).to(A.out_space.dtype)


@diagonal_rule.register(Sparse)
def _diagonal(A: Sparse) -> Tensor | None:
    rows, columns = A.indices
    own = rows == columns
    dtype = torch.promote_types(A.values.dtype, A.out_space.dtype)
    zeros = torch.zeros(A.shape[0], dtype=dtype, device=A.values.device)
    return zeros.index_add(0, rows[own], A.values[own].to(dtype)).to(A.out_space.dtype)


@column_squares_rule.register(Sparse)
def _column_squares(J: Sparse) -> Tensor | None:
    if J.values.is_complex() != J.in_space.dtype.is_complex or J.values.requires_grad:
        return None
    array = J.scipy_array().tocsc()
    array.sum_duplicates()
    squares = np.asarray((abs(array) ** 2).sum(axis=0)).ravel()
    return torch.from_numpy(squares).to(J.in_space.device, J.in_space.dtype)


@norm_rule.register(Sparse)
def _norm(A: Sparse, ord: Order) -> float | None:
    if ord != "fro":
        return None
    array = A.scipy_array().tocsr()
    array.sum_duplicates()
    return float(torch.linalg.vector_norm(torch.from_numpy(array.data)))


@gram_rule.register(Sparse)
def _gram(J: Sparse) -> Tensor | None:
    array = J.scipy_array().tocsr()
    return torch.from_numpy((array @ array.conj().T).toarray()).to(J.out_space.device)
