"""Traces that the structure of the operator knows: the open rule behind `trace`."""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import Tensor

from hesse.linalg.diagonal_rules import diagonal_rule
from hesse.linalg.norm_rules import norm_rule
from hesse.linalg.options import is_complex
from hesse.operators import BlockDiagonal, Congruence, Conjugate, LinearOperator, Scaled, Sum


def total(entries: Tensor) -> complex:
    """The sum of a vector's entries, 16-bit ones in float32."""
    dtype = torch.float32 if entries.dtype in (torch.float16, torch.bfloat16) else entries.dtype
    return complex(entries.detach().sum(dtype=dtype).item())


@singledispatch
def trace_rule(A: LinearOperator) -> complex | None:
    """The open rule behind `trace`: a number, or None where no structure knows it without many products."""
    known = diagonal_rule(A)
    return None if known is None else total(known)


@trace_rule.register(Sum)
def _sum(A: Sum) -> complex | None:
    return _add([trace_rule(term) for term in A.terms])


@trace_rule.register(BlockDiagonal)
def _blocks(A: BlockDiagonal) -> complex | None:
    blocks = A.blocks.values()
    return _add([trace_rule(block) if block.shape[0] == block.shape[1] else None for block in blocks])


def _add(parts: list[complex | None]) -> complex | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


@trace_rule.register(Scaled)
def _scaled(A: Scaled) -> complex | None:
    known = trace_rule(A.operator)
    factor = A.factor.item() if isinstance(A.factor, Tensor) else A.factor
    return None if known is None else factor * known


@trace_rule.register(Conjugate)
def _conjugate(A: Conjugate) -> complex | None:
    known = trace_rule(A.operator)
    return None if known is None else complex(known).conjugate()


@trace_rule.register(Congruence)
def _congruence(A: Congruence) -> complex | None:
    if A.middle is None and is_complex(A.outer) == A.in_space.dtype.is_complex:
        size = norm_rule(A.outer, "fro")  # trace(J^H J) = |J|_F^2
        return None if size is None else size**2
    known = diagonal_rule(A)
    return None if known is None else total(known)
