"""What the structure of the whole tells of its restriction to some leaves, and of its blocks along the diagonal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hesse.core.space import Space
from hesse.linalg.answer import Answer
from hesse.linalg.diagonal_rules import column_squares_rule, diagonal_rule
from hesse.linalg.eigenvalues import Eigenvalues, eigenvalues_rule, floor_rule
from hesse.linalg.logdet_rules import logdet_rule
from hesse.linalg.lstsq_rules import Inner as Least
from hesse.linalg.lstsq_rules import lstsq_rule
from hesse.linalg.norm_rules import Order, norm_rule
from hesse.linalg.solve_rules import Inner, solve_rule
from hesse.linalg.trace_rules import trace_rule
from hesse.operators.restriction import DiagonalBlocks, Restriction


def _picked(flat: Tensor, space: Space, places: Sequence[int]) -> Tensor:
    """The entries of some leaves, in the order of the places, of flat vectors ``[..., dim]`` of a space."""
    parts = flat.split(space.sizes, dim=-1)
    return torch.cat([parts[place] for place in places], dim=-1)


@diagonal_rule.register(Restriction)
def _diagonal(A: Restriction) -> Tensor | None:
    same = A.inputs == A.outputs and A.operator.in_space == A.operator.out_space
    known = diagonal_rule(A.operator) if same else None
    return None if known is None else _picked(known, A.operator.in_space, A.inputs).to(A.out_space.dtype)


@diagonal_rule.register(DiagonalBlocks)
def _blocks_diagonal(A: DiagonalBlocks) -> Tensor | None:
    return diagonal_rule(A.whole)  # once for all blocks


@trace_rule.register(DiagonalBlocks)
def _blocks_trace(A: DiagonalBlocks) -> complex | None:
    return trace_rule(A.whole)


@column_squares_rule.register(Restriction)
def _column_squares(J: Restriction) -> Tensor | None:
    every = sorted(J.outputs) == list(range(len(J.operator.out_space.names)))
    known = column_squares_rule(J.operator) if every else None
    return None if known is None else _picked(known, J.operator.in_space, J.inputs).to(J.in_space.dtype)


@trace_rule.register(Restriction)
def _trace(A: Restriction) -> complex | None:
    if A.rearranges:
        return trace_rule(A.operator)
    known = diagonal_rule(A)
    return None if known is None else complex(known.detach().sum().item())


@norm_rule.register(Restriction)
def _norm(A: Restriction, ord: Order) -> float | None:
    return norm_rule(A.operator, ord) if A.rearranges else None


@eigenvalues_rule.register(Restriction)
def _eigenvalues(A: Restriction) -> Eigenvalues | None:
    return eigenvalues_rule(A.operator) if A.rearranges else None


@floor_rule.register(Restriction)
def _floor(A: Restriction) -> float | None:
    return floor_rule(A.operator) if A.inputs == A.outputs else None  # Cauchy: the eigenvalues of a part lie within


@logdet_rule.register(Restriction)
def _logdet(A: Restriction) -> float | None:
    return logdet_rule(A.operator) if A.rearranges else None


@solve_rule.register(Restriction)
def _solve(A: Restriction, B: Tensor, inner: Inner) -> Answer | None:
    if not A.rearranges:
        return None
    back = [A.inputs.index(place) for place in range(len(A.inputs))]
    found = inner(A.operator, _picked(B, A.in_space, back))
    return replace(found, value=_picked(found.value, A.operator.in_space, A.inputs))


@lstsq_rule.register(Restriction)
def _lstsq(A: Restriction, B: Tensor, damping: float, inner: Least) -> Answer | None:
    """Of one that only puts the leaves into another order."""
    whole = A.operator
    if len(A.inputs) != len(whole.in_space.names) or len(A.outputs) != len(whole.out_space.names):
        return None
    back = [A.outputs.index(place) for place in range(len(A.outputs))]
    found = inner(whole, _picked(B, A.out_space, back), damping)
    return replace(found, value=_picked(found.value, whole.in_space, A.inputs))
