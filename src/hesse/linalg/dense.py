"""The matrix of an operator."""

from __future__ import annotations

import math
from functools import singledispatch

import torch
from torch import Tensor

from hesse.core.batching import slices
from hesse.core.memory import Budget, given_budget, too_small
from hesse.linalg.options import is_complex
from hesse.linalg.products import beside, block_bytes, mm_within, rows_at_once, share_of_vectors, unit_vectors, work_dtype
from hesse.operators import (
    BlockDiagonal,
    Composed,
    Congruence,
    Conjugate,
    Dense,
    Diagonal,
    Identity,
    Kronecker,
    LinearOperator,
    LowRank,
    Scaled,
    Sum,
)
from hesse.operators.spread import asked_together


@asked_together
def dense(A: LinearOperator, *, memory: Budget | None = None) -> Tensor:
    """The matrix ``[out, in]`` of an operator, in the order of the flat vectors of its spaces.

    Args:
        A: the operator.
        memory: bytes, fraction or text such as ``"2GiB"``; by default the budget in force.

    Returns:
        a fresh tensor in the dtype of `A.out_space`.

    Raises:
        MemoryBudgetError: the matrix and one product do not fit into the budget.

    Cost: nothing but arithmetic where the structure is known; else ``min(out, in)`` products, in blocks.
    """
    return dense_rule(A, memory)


def matrix_for(A: LinearOperator, what: str, copies: float, memory: Budget | None = None) -> Tensor:
    """The dense matrix, if what is made of it fits into a memory budget that the user has set.

    Args:
        A: the operator.
        what: what is made of it, for errors.
        copies: times the matrix that this takes at the highest, itself included.
        memory: the budget; None: that in force.

    Raises:
        MemoryBudgetError: it does not fit.
    """
    if not matrix_has_room(A, copies, memory):
        given = given_budget(memory, A.in_space.device) or 0
        raise too_small(given, _needed(A, copies), f"{what} of a matrix {A.shape[0]} x {A.shape[1]}")
    return dense(A, memory=memory)


def matrix_has_room(A: LinearOperator, copies: float, memory: Budget | None = None) -> bool:
    """Whether so many times the matrix fit into the memory budget that the user has set, if there is one."""
    given = given_budget(memory, A.in_space.device)
    return given is None or _needed(A, copies) <= given


def _require_copies(A: LinearOperator, copies: int, memory: Budget | None) -> None:
    given = given_budget(memory, A.in_space.device)
    if given is None:
        return
    least = _needed(A, copies) + math.ceil(block_bytes(A, 1) / share_of_vectors(A))
    if least > given:
        raise too_small(given, least, f"the dense matrix of a {type(A).__name__} of shape {A.shape}")


def _needed(A: LinearOperator, copies: float) -> int:
    itemsize = max(work_dtype(space.dtype).itemsize for space in (A.in_space, A.out_space))
    size = A.shape[0] * A.shape[1] * itemsize
    return math.ceil(max(copies * size, size + block_bytes(A, 1) / share_of_vectors(A)))


@singledispatch
def dense_rule(A: LinearOperator, memory: Budget | None = None) -> Tensor:
    """The open rule behind `dense`, by products with unit vectors: ``@dense_rule.register(MyOperator)``."""
    return _by_products(A, memory)


def _by_products(A: LinearOperator, memory: Budget | None) -> Tensor:
    out, into = A.shape
    same_field = A.in_space.dtype.is_complex == A.out_space.dtype.is_complex
    if out < into and same_field and _coarsest(A.in_space.dtypes) <= _coarsest(A.out_space.dtypes):
        return _by_columns(A.T, memory).mT.to(A.out_space.dtype)
    return _by_columns(A, memory)


def _coarsest(dtypes: tuple[torch.dtype, ...]) -> float:
    return max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)


def _by_columns(A: LinearOperator, memory: Budget | None) -> Tensor:
    out, into = A.shape
    dtype = A.out_space.dtype
    size = out * into * dtype.itemsize
    rows = rows_at_once(A, into, f"the dense {out} x {into} matrix", memory=memory, kept=size)
    columns = torch.empty(into, out, dtype=dtype, device=A.out_space.device)
    for part in slices(into, rows, "dense matrix"):
        units = A.in_space.unravel(unit_vectors(A.in_space, part.start, part.stop))
        with beside(A, size + block_bytes(A, part.stop - part.start), memory, kept=size):
            columns[part] = A.out_space.ravel(mm_within(A, units), 1)
    return columns.mT


@dense_rule.register(Identity)
def _identity(A: Identity, memory: Budget | None = None) -> Tensor:
    _require_bytes(A, 0, memory)
    return torch.eye(A.in_space.dim, dtype=A.in_space.dtype, device=A.in_space.device)


@dense_rule.register(Dense)
def _dense(A: Dense, memory: Budget | None = None) -> Tensor:
    _require_bytes(A, 0, memory)
    return A.matrix.to(A.out_space.dtype, copy=True)


@dense_rule.register(Diagonal)
def _diagonal(A: Diagonal, memory: Budget | None = None) -> Tensor:
    _require_bytes(A, 0, memory)
    return torch.diag(A.in_space.ravel(A.entries))


@dense_rule.register(LowRank)
def _low_rank(A: LowRank, memory: Budget | None = None) -> Tensor:
    _require_bytes(A, A.left.nbytes, memory)
    return (A.left * A.weights) @ A.right.mT


@dense_rule.register(Kronecker)
def _kronecker(A: Kronecker, memory: Budget | None = None) -> Tensor:
    _require_bytes(A, A.left.nbytes + A.right.nbytes, memory)
    return torch.kron(A.left.contiguous(), A.right.contiguous())


@dense_rule.register(Sum)
def _sum(A: Sum, memory: Budget | None = None) -> Tensor:
    _require_copies(A, 3, memory)
    total = dense_rule(A.terms[0], memory)
    for term in A.terms[1:]:
        with beside(A, 2 * total.nbytes, memory):
            part = dense_rule(term)
        total = total + part
        del part
    return total


@dense_rule.register(Scaled)
def _scaled(A: Scaled, memory: Budget | None = None) -> Tensor:
    _require_copies(A, 2, memory)
    return A.factor * dense_rule(A.operator, memory)


@dense_rule.register(Conjugate)
def _conjugate(A: Conjugate, memory: Budget | None = None) -> Tensor:
    _require_copies(A, 2, memory)
    return dense_rule(A.operator, memory).conj().resolve_conj()


@dense_rule.register(Composed)
def _composed(A: Composed, memory: Budget | None = None) -> Tensor:
    factors = _bytes(A.first) + _bytes(A.second)
    # a bottleneck is better crossed with few vectors than with many
    if A.second.shape[0] > min(A.shape) or not _fit(A, factors + _bytes(A), memory):
        return _by_products(A, memory)
    with beside(A, _bytes(A) + _bytes(A.second), memory):
        first = dense_rule(A.first)
    with beside(A, _bytes(A) + first.nbytes, memory):
        return first @ dense_rule(A.second)


@dense_rule.register(Congruence)
def _congruence(A: Congruence, memory: Budget | None = None) -> Tensor:
    middle = 0 if A.middle is None else _bytes(A.middle) + _bytes(A.outer)
    is_mixed = is_complex(A.outer) != A.in_space.dtype.is_complex
    if A.outer.shape[0] > A.outer.shape[1] or is_mixed or not _fit(A, _bytes(A) + 2 * _bytes(A.outer) + middle, memory):
        return _by_products(A, memory)
    with beside(A, _bytes(A) + middle, memory):
        outer = dense_rule(A.outer)
    if A.middle is None:
        return outer.mH @ outer
    with beside(A, _bytes(A) + 2 * outer.nbytes, memory):
        return outer.mH @ (dense_rule(A.middle) @ outer)


@dense_rule.register(BlockDiagonal)
def _blocks(A: BlockDiagonal, memory: Budget | None = None) -> Tensor:
    _require_bytes(A, max((_needed(block, 1) for block in A.blocks.values()), default=0), memory)
    result = torch.zeros(A.shape, dtype=A.out_space.dtype, device=A.out_space.device)
    row = column = 0
    for block in A.blocks.values():
        out, into = block.shape
        with beside(A, _bytes(A), memory):
            result[row : row + out, column : column + into] = dense_rule(block)
        row, column = row + out, column + into
    return result


def _bytes(A: LinearOperator) -> int:
    """Bytes of the matrix."""
    return A.shape[0] * A.shape[1] * A.out_space.dtype.itemsize


def _fit(A: LinearOperator, needed: int, memory: Budget | None) -> bool:
    given = given_budget(memory, A.in_space.device)
    return given is None or needed <= given


def _require_bytes(A: LinearOperator, beside_it: int, memory: Budget | None) -> None:
    """Refuse a matrix that does not fit beside so many bytes into a budget that the user has set."""
    if not _fit(A, _bytes(A) + beside_it, memory):
        given = given_budget(memory, A.in_space.device) or 0
        raise too_small(given, _bytes(A) + beside_it, f"the dense matrix of a {type(A).__name__} of shape {A.shape}")
