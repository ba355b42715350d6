"""Determinants that the structure of the operator knows: the open rule behind `slogdet`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hesse.core.errors import NoRuleError
from hesse.linalg.dense import matrix_for
from hesse.linalg.diagonal import diagonal_rule
from hesse.linalg.factor_sparse import factor_sparse
from hesse.linalg.pinv_matrix import require_finite
from hesse.linalg.products import real_dtype, work_dtype
from hesse.operators import (
    BlockDiagonal,
    Composed,
    Congruence,
    Conjugate,
    Dense,
    Identity,
    Kronecker,
    LinearOperator,
    LowRank,
    Restriction,
    Scaled,
    Tag,
    storable,
)


class SignLog(NamedTuple):
    """A determinant ``sign * exp(logabs)``, as 0-d tensors.

    Attributes:
        sign: -1, 0 or 1; complex: of modulus 1, or 0.
        logabs: the logarithm of the modulus.
    """

    sign: Tensor
    logabs: Tensor

    def __mul__(self, other: object) -> SignLog:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The determinant of the product of two operators."""
        if not isinstance(other, SignLog):
            return NotImplemented
        return SignLog(self.sign * other.sign, self.logabs + other.logabs)

    def power(self, count: int) -> SignLog:
        """The determinant of a power."""
        return SignLog(self.sign**count, count * self.logabs if count else 0 * self.sign.abs())


@singledispatch
def slogdet_rule(A: LinearOperator) -> SignLog | None:
    """The open rule behind `slogdet`: of a square operator, or None where no structure knows it.

    Register more with ``@slogdet_rule.register(MyOperator)``.
    """
    entries = diagonal_rule(A) if Tag.DIAGONAL in A.tags and A.in_space == A.out_space else None
    return _sparse(A) if entries is None else _of_factors(entries)


def _of_factors(entries: Tensor) -> SignLog:
    require_finite(entries)
    entries = entries.to(work_dtype(entries.dtype))
    return SignLog(torch.sgn(entries).prod(), entries.abs().log().sum())


def matrix_slogdet(matrix: Tensor) -> SignLog:
    """By the LU factors, 16-bit ones in float32.

    Raises:
        NonFiniteError: an entry is NaN or infinite.
    """
    require_finite(matrix)
    return SignLog(*torch.linalg.slogdet(matrix.to(work_dtype(matrix.dtype))))


def _part(A: LinearOperator) -> SignLog:
    """Of a part, by its structure or its matrix."""
    known = slogdet_rule(A)
    return matrix_slogdet(matrix_for(A, "the determinant", 4)) if known is None else known


def _number(A: LinearOperator, sign: float, logabs: float) -> SignLog:
    dtype, device = work_dtype(A.in_space.dtype), A.in_space.device
    return SignLog(torch.tensor(sign, dtype=dtype, device=device), torch.tensor(logabs, dtype=real_dtype(dtype), device=device))


def _singular(A: LinearOperator) -> SignLog:
    return _number(A, 0.0, -torch.inf)


def _sparse(A: LinearOperator) -> SignLog | None:
    """By SuperLU, where nothing has to be differentiated."""
    factors = None if torch.is_grad_enabled() and any(part.requires_grad for part in _tensors(A)) else factor_sparse(A)
    if factors is None:
        return None
    lu = factors.factors.lu
    pivots = lu.U.diagonal()
    phase = np.prod(pivots / np.abs(pivots)) * _parity(lu.perm_r) * _parity(lu.perm_c)
    like = _number(A, 1.0, factors.log_abs_det())
    return SignLog(like.sign * (complex(phase) if like.sign.is_complex() else float(phase.real)), like.logabs)


def _parity(permutation: Any) -> int:
    """1 or -1, by the number of cycles."""
    seen, cycles = np.zeros(len(permutation), bool), 0
    for start in range(len(permutation)):
        cycles += not seen[start]
        while not seen[start]:
            seen[start], start = True, permutation[start]
    return -1 if (len(permutation) - cycles) % 2 else 1


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors that an operator is stored by."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, LinearOperator):
        try:
            yield from _tensors(storable.lookup(type(value))(value))
        except NoRuleError:
            return
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


@slogdet_rule.register(Identity)
def _identity(A: Identity) -> SignLog:
    return _number(A, 1.0, 0.0)


@slogdet_rule.register(Dense)
def _dense(A: Dense) -> SignLog | None:
    return matrix_slogdet(A.matrix)


@slogdet_rule.register(LowRank)
def _low_rank(A: LowRank) -> SignLog | None:
    return _singular(A) if A.left.shape[1] < A.shape[0] else None


@slogdet_rule.register(Scaled)
def _scaled(A: Scaled) -> SignLog | None:
    inner = _part(A.operator)
    factor = torch.as_tensor(A.factor, dtype=inner.sign.dtype, device=inner.sign.device)
    return inner * SignLog(torch.sgn(factor), factor.abs().log()).power(A.shape[0])


@slogdet_rule.register(Conjugate)
def _conjugate(A: Conjugate) -> SignLog | None:
    inner = _part(A.operator)
    return SignLog(inner.sign.conj().resolve_conj(), inner.logabs)


@slogdet_rule.register(Restriction)
def _restriction(A: Restriction) -> SignLog | None:
    """Of leaves in another order, the same on both sides."""
    same = A.rearranges and len(A.inputs) == len(A.operator.out_space.names) and A.operator.in_space == A.operator.out_space
    return _part(A.operator) if same else None


@slogdet_rule.register(Kronecker)
def _kronecker(A: Kronecker) -> SignLog | None:
    (p, q), (r, s) = A.left.shape, A.right.shape
    if p != q or r != s:
        return _singular(A)
    return matrix_slogdet(A.left).power(r) * matrix_slogdet(A.right).power(p)


@slogdet_rule.register(BlockDiagonal)
def _blocks(A: BlockDiagonal) -> SignLog | None:
    if any(block.shape[0] != block.shape[1] for block in A.blocks.values()):
        return _singular(A)
    found = _number(A, 1.0, 0.0)
    for block in A.blocks.values():
        found = found * _part(block)
    return found


@slogdet_rule.register(Composed)
def _composed(A: Composed) -> SignLog | None:
    middle = A.second.shape[0]
    if middle != A.shape[0]:
        return _singular(A) if middle < A.shape[0] else None
    return _part(A.first) * _part(A.second)


@slogdet_rule.register(Congruence)
def _congruence(A: Congruence) -> SignLog | None:
    """``|det J|^2 det H``."""
    out, into = A.outer.shape
    if out != into:
        return _singular(A) if out < into else None
    outer = _part(A.outer)
    inner = _number(A, 1.0, 0.0) if A.middle is None else _part(A.middle)
    return inner * SignLog(outer.sign.abs() ** 2, 2 * outer.logabs)
