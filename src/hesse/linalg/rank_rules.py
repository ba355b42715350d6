"""Singular values and ranks that the structure of the operator knows: the open rules behind `rank`."""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from hesse.core.errors import MemoryBudgetError
from hesse.core.memory import Budget, current_budget, format_bytes
from hesse.linalg.dense import dense
from hesse.linalg.diagonal import diagonal_rule
from hesse.linalg.norm import norm
from hesse.linalg.pinv_general import matrix_bytes
from hesse.linalg.pinv_matrix import cut_of, keep, require_finite
from hesse.linalg.products import work_dtype
from hesse.operators import BlockDiagonal, Congruence, Conjugate, Dense, Kronecker, LowRank, Restriction, Scaled, Tag
from hesse.operators.base import LinearOperator


class Rank(int):
    """A numerical rank: an int that knows how clear it is.

    Attributes:
        gap: the smallest singular value that counts over the largest that does not; infinite if those are zero, or none.
            NaN where it is not known.
    """

    gap: float

    def __new__(cls, value: int, gap: float = math.nan) -> Rank:
        made = super().__new__(cls, value)
        made.gap = gap
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Rank, (int(self), self.gap)


@singledispatch
def rank_rule(A: LinearOperator, rtol: float | None, memory: Budget | None) -> int | None:
    """The open rule behind `rank`: how many singular values are above `rtol` times the largest (a `Rank` with a gap), or None.

    Register more with ``@rank_rule.register(MyOperator)``. By default from the singular values that `values_rule` knows.
    """
    values = values_rule(A, memory)
    return None if values is None else rank_of(A, values, rtol)


def rank_of(A: LinearOperator, values: Tensor, rtol: float | None) -> Rank:
    """The rank of an operator whose singular values but zeros are given."""
    _, known = keep(values, cut_of(A.shape, values.dtype, rtol), min(A.shape))
    assert known.rank is not None and isinstance(known.gap, float)
    return Rank(known.rank, known.gap)


def matrix_values(matrix: Tensor) -> Tensor:
    """The singular values of a matrix, 16-bit ones in float32.

    Raises:
        NonFiniteError: an entry is NaN or infinite.
    """
    matrix = matrix.detach().to(work_dtype(matrix.dtype))
    require_finite(matrix)
    return torch.linalg.svdvals(matrix)


def largest_value(A: LinearOperator, memory: Budget | None) -> float:
    """The largest singular value: by the structure, by the matrix where it fits, else by Lanczos."""
    values = values_rule(A, memory)
    if values is None and matrix_bytes(A) <= current_budget(memory, A.in_space.device):
        values = matrix_values(dense(A, memory=memory))
    if values is None:
        return float(norm(A, ord=2))
    return float(values.max()) if values.numel() else 0.0


def require_matrix(A: LinearOperator, question: str, memory: Budget | None, copies: int = 5) -> None:
    """Raise `MemoryBudgetError`, which says the size, unless so many times the matrix fit."""
    needed, budget = matrix_bytes(A, copies), current_budget(memory, A.in_space.device)
    if needed > budget:
        raise MemoryBudgetError(
            f"{question} of {type(A).__name__} of shape {A.shape} is found by its matrix.",
            f"a budget of {format_bytes(budget)}, where at least {format_bytes(needed)} is needed",
            f"pass memory={needed} or more, or look at hesse.svd(A, k, which='smallest')",
            needed,
        )


def is_whole(A: Restriction) -> bool:
    """Whether no leaf is left out, so that it is the operator itself but for the order of leaves."""
    return len(A.inputs) == len(A.operator.in_space.names) and len(A.outputs) == len(A.operator.out_space.names)


def is_gram(A: Congruence) -> bool:
    """Whether it is ``J^H J``, with nothing in the middle and numbers of one kind."""
    return A.middle is None and A.outer.in_space.dtype.is_complex == A.outer.out_space.dtype.is_complex


@singledispatch
def values_rule(A: LinearOperator, memory: Budget | None) -> Tensor | None:
    """The open rule of operators whose structure knows their singular values: all but zeros, in no order, or None.

    Register more with ``@values_rule.register(MyOperator)``.
    """
    entries = diagonal_rule(A) if Tag.DIAGONAL in A.tags else None
    if entries is None:
        return None
    require_finite(entries)
    return entries.detach().to(work_dtype(entries.dtype)).abs()


@values_rule.register(Dense)
def _dense(A: Dense, memory: Budget | None) -> Tensor | None:
    return matrix_values(A.matrix)


@values_rule.register(Scaled)
def _scaled(A: Scaled, memory: Budget | None) -> Tensor | None:
    known = values_rule(A.operator, memory)
    return None if known is None else abs(complex(A.factor)) * known


@values_rule.register(Conjugate)
def _conjugate(A: Conjugate, memory: Budget | None) -> Tensor | None:
    return values_rule(A.operator, memory)


@values_rule.register(Kronecker)
def _kronecker(A: Kronecker, memory: Budget | None) -> Tensor | None:
    return torch.outer(matrix_values(A.left), matrix_values(A.right)).flatten()


@values_rule.register(LowRank)
def _low_rank(A: LowRank, memory: Budget | None) -> Tensor | None:
    dtype = work_dtype(torch.promote_types(A.left.dtype, A.weights.dtype))
    left, right = (torch.linalg.qr(part.detach().to(dtype), mode="r").R for part in (A.left, A.right))
    return matrix_values((left * A.weights.detach().to(dtype)) @ right.mT)


@values_rule.register(Restriction)
def _restriction(A: Restriction, memory: Budget | None) -> Tensor | None:
    return values_rule(A.operator, memory) if is_whole(A) else None


@values_rule.register(Congruence)
def _congruence(A: Congruence, memory: Budget | None) -> Tensor | None:
    known = values_rule(A.outer, memory) if is_gram(A) else None
    return None if known is None else known.square()


@values_rule.register(BlockDiagonal)
def _blocks(A: BlockDiagonal, memory: Budget | None) -> Tensor | None:
    parts: list[Tensor] = []
    for block in A.blocks.values():
        known = values_rule(block, memory)
        if known is None and matrix_bytes(block) <= current_budget(memory, block.in_space.device):
            known = matrix_values(dense(block, memory=memory))
        if known is None:
            return None
        parts.append(known.to(A.out_space.device))
    return torch.cat(parts) if parts else torch.zeros(0, device=A.out_space.device)
