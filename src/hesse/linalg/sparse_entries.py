"""Operators that have few entries, as one SciPy matrix: sums, multiples and products of sparse ones."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import numpy as np
from torch import Tensor

from hesse.linalg.diagonal_rules import diagonal_rule
from hesse.operators import (
    BlockDiagonal,
    Composed,
    Congruence,
    Conjugate,
    LinearOperator,
    Scaled,
    Sparse,
    Sum,
    Tag,
)

_FULLEST = 64  # a product that takes more operations an entry of its factors is no sparse matrix any more


@singledispatch
def entries_rule(A: LinearOperator) -> Any:
    """The open rule of operators with few entries, whose systems a sparse factorization solves.

    Register more with ``@entries_rule.register(MyOperator)``.

    Returns:
        The matrix as a SciPy sparse array ``[out, in]``, or None where no structure knows its entries.

    Cost: no products; work in proportion to the entries.
    """
    entries = diagonal_rule(A) if Tag.DIAGONAL in A.tags else None
    if entries is None:
        return None
    import scipy.sparse

    return scipy.sparse.diags_array(entries.detach().cpu().numpy(), format="csr")


@entries_rule.register(Sparse)
def _sparse(A: Sparse) -> Any:
    return A.scipy_array()


@entries_rule.register(Scaled)
def _scaled(A: Scaled) -> Any:
    known = entries_rule(A.operator)
    factor = A.factor.item() if isinstance(A.factor, Tensor) else A.factor
    return None if known is None else known * known.dtype.type(factor) if np.isrealobj(factor) else known * factor


@entries_rule.register(Conjugate)
def _conjugate(A: Conjugate) -> Any:
    known = entries_rule(A.operator)
    return None if known is None else known.conj()


@entries_rule.register(Sum)
def _sum(A: Sum) -> Any:
    total = None
    for term in A.terms:
        part = entries_rule(term)
        if part is None:
            return None
        total = part if total is None else total + part
    return total


@entries_rule.register(Composed)
def _composed(A: Composed) -> Any:
    return _product(entries_rule(A.first), entries_rule(A.second))


@entries_rule.register(Congruence)
def _congruence(A: Congruence) -> Any:
    outer = entries_rule(A.outer)
    if outer is None:
        return None
    return _product(outer.conj().T, outer if A.middle is None else _product(entries_rule(A.middle), outer))


def _product(first: Any, second: Any) -> Any:
    """None where one is missing, or where rows of one meet full columns of the other: that is better left in factors."""
    if first is None or second is None:
        return None
    first, second = first.tocsc(), second.tocsr()
    operations = int(np.diff(first.indptr).astype(np.int64) @ np.diff(second.indptr))
    return first.tocsr() @ second if operations <= _FULLEST * (first.nnz + second.nnz) else None


@entries_rule.register(BlockDiagonal)
def _blocks(A: BlockDiagonal) -> Any:
    parts = [entries_rule(block) for block in A.blocks.values()]
    if any(part is None for part in parts) or not parts:
        return None
    import scipy.sparse

    return scipy.sparse.block_diag(parts, format="csr")
