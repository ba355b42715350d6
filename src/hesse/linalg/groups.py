"""Right-hand sides in groups, so that the vectors of an iterative method keep to a memory budget that the user has set."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from hesse.core.batching import slices
from hesse.core.growth import settle
from hesse.core.memory import given_budget, too_small
from hesse.linalg.answer import Answer
from hesse.linalg.products import beside, block_bytes, share_of_vectors, work_dtype
from hesse.operators import LinearOperator

CG, MINRES, LSMR = (4, 0), (9, 0), (5, 2)
"""Vectors of the space that A maps from, and of that it maps to, which a row of the method holds beside those of a product."""
DAMPED = (8, 2)
"""The same for LSMR with the rows of the damping."""
CHECK = (2, 2)
"""The same for a look at a residual."""


def in_groups(
    A: LinearOperator, B: Tensor, method: Callable[[Tensor], Answer], held: tuple[int, int], *, kept: int = 0
) -> Answer:
    """What a method answers for the rows of B, so many of them at a time as fit beside all rows and their solutions.

    Args:
        A: the operator.
        B: right-hand sides ``[k, out]``.
        method: answers for some of the rows; one that iterates.
        held: vectors that it holds for each row (`CG`, ...).
        kept: further bytes that are taken all the while.

    Returns:
        all rows together: the most iterations, the largest norm and condition number seen, the first trouble.

    Raises:
        MemoryBudgetError: not even one row fits; `least` is what would do.
    """
    if given_budget(None, B.device) is None or len(B) == 0:
        return method(B)
    whole = kept + _whole(A, B)
    count, taken = _rows_at_once(A, B, held, whole)
    answers: list[Answer] = []
    value: Tensor | None = None
    for part in slices(len(B), count):
        with beside(A, taken, kept=whole):
            found = method(B[part])
        value = found.value.new_zeros(len(B), A.shape[1]) if value is None else value
        value[part] = found.value
        answers.append(replace(found, value=value[part]))
        del found
        settle()
    return _together(answers, B[:0] if value is None else value)


def row_groups(A: LinearOperator, B: Tensor, held: tuple[int, int] = CHECK) -> list[slice]:
    """Groups of rows of B, for looking at solutions of which all are held; one group without a budget."""
    if given_budget(None, B.device) is None or len(B) == 0:
        return [slice(0, len(B))]
    return list(slices(len(B), _rows_at_once(A, B, held, _whole(A, B))[0]))


def least_bytes(A: LinearOperator, B: Tensor, held: tuple[int, int], *, kept: int = 0) -> int:
    """The smallest budget with which `in_groups` works off the rows of B, one at a time."""
    return kept + _whole(A, B) + math.ceil(_per_row(A, B, held) / share_of_vectors(A))


def _whole(A: LinearOperator, B: Tensor) -> int:
    """Bytes of all rows and their solutions."""
    return B.nbytes + len(B) * A.shape[1] * _itemsize(A, B)


def _per_row(A: LinearOperator, B: Tensor, held: tuple[int, int]) -> int:
    out, into = A.shape
    return (held[0] * into + held[1] * out) * _itemsize(A, B) + block_bytes(A, 1)


def _itemsize(A: LinearOperator, B: Tensor) -> int:
    return torch.promote_types(B.dtype, work_dtype(A.in_space.dtype)).itemsize


def _rows_at_once(A: LinearOperator, B: Tensor, held: tuple[int, int], whole: int) -> tuple[int, int]:
    """Rows of a group, and the bytes that are taken beside the products."""
    given = given_budget(None, B.device) or 0
    per_row = _per_row(A, B, held)
    least = whole + math.ceil(per_row / share_of_vectors(A))
    if least > given:
        raise too_small(given, least, f"{len(B)} right-hand side{'' if len(B) == 1 else 's'} of dimension {A.shape[0]}")
    count = min(int(share_of_vectors(A) * (given - whole) / per_row), len(B))
    return max(count, 1), whole + max(count, 1) * per_row


def _together(answers: list[Answer], value: Tensor) -> Answer:
    """One answer for all of the rows."""
    conditions = [found.condition for found in answers if found.condition is not None]
    norms = [found.norm for found in answers if found.norm is not None]
    residuals = [found.residual for found in answers if found.residual is not None]
    return Answer(
        value,
        max(conditions, default=None),
        max(found.iterations for found in answers),
        next((found.trouble for found in answers if found.trouble), ""),
        max(norms, default=None),
        max(residuals) if len(residuals) == len(answers) else None,
    )
