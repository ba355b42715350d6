"""All eigenvalues of a Hermitian operator where its structure knows them, and lower bounds of them."""

from __future__ import annotations

from functools import singledispatch
from typing import NamedTuple

import torch
from torch import Tensor

from hesse.core.memory import Budget
from hesse.linalg.dense import matrix_for
from hesse.linalg.diagonal import diagonal_rule
from hesse.linalg.options import rounding
from hesse.linalg.products import work_dtype
from hesse.operators import (
    BlockDiagonal,
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
    Tag,
)


class Eigenvalues(NamedTuple):
    """A spectrum with multiplicities.

    Attributes:
        values: ``[m]``, real, float64, in no order.
        counts: ``[m]``, float64: the multiplicity of each.
        noise: how far rounding may have moved a value; 0 where they were read off.
    """

    values: Tensor
    counts: Tensor
    noise: float

    @classmethod
    def of(cls, values: Tensor, noise: float = 0.0) -> Eigenvalues:
        """Values that are each counted once."""
        values = values.detach().double()
        return cls(values, torch.ones_like(values), noise)

    def sum(self, terms: Tensor) -> float:
        """The sum over all eigenvalues of one term for each value."""
        return float((terms * self.counts.to(terms.device)).sum())


def matrix_eigenvalues(matrix: Tensor) -> Eigenvalues:
    """The eigenvalues of a Hermitian matrix, 16-bit ones in float32."""
    matrix = matrix.detach().to(work_dtype(matrix.dtype))
    values = torch.linalg.eigvalsh(matrix).double()
    return Eigenvalues.of(values, _noise(values, torch.finfo(matrix.dtype).eps, len(values)))


def exact_eigenvalues(A: LinearOperator, memory: Budget | None = None) -> Eigenvalues:
    """From the structure, else from the dense matrix.

    Cost: dim products where no structure knows them.
    """
    known = eigenvalues_rule(A)
    return matrix_eigenvalues(matrix_for(A, "the eigenvalues", 5, memory)) if known is None else known


def _noise(values: Tensor, eps: float, dim: int) -> float:
    return max(dim, 1) * eps * float(values.abs().max()) if values.numel() else 0.0


@singledispatch
def eigenvalues_rule(A: LinearOperator) -> Eigenvalues | None:
    """The open rule behind log-determinants, spectra and traces of functions of a Hermitian operator.

    Returns:
        all eigenvalues, or None where no structure knows them: ``@eigenvalues_rule.register(MyOperator)``.
    """
    entries = diagonal_rule(A) if Tag.DIAGONAL in A.tags else None
    return None if entries is None else Eigenvalues.of(entries.detach().real)


@eigenvalues_rule.register(Identity)
def _identity(A: Identity) -> Eigenvalues:
    one = torch.ones(1, dtype=torch.float64, device=A.in_space.device)
    return Eigenvalues(one, A.in_space.dim * one, 0.0)


@eigenvalues_rule.register(Dense)
def _dense(A: Dense) -> Eigenvalues:
    return matrix_eigenvalues(A.matrix)


@eigenvalues_rule.register(Scaled)
def _scaled(A: Scaled) -> Eigenvalues | None:
    factor = complex(A.factor)
    known = None if factor.imag else eigenvalues_rule(A.operator)
    if known is None:
        return None
    return Eigenvalues(factor.real * known.values, known.counts, abs(factor.real) * known.noise)


@eigenvalues_rule.register(Conjugate)
def _conjugate(A: Conjugate) -> Eigenvalues | None:
    return eigenvalues_rule(A.operator)


@eigenvalues_rule.register(Kronecker)
def _kronecker(A: Kronecker) -> Eigenvalues | None:
    factors = [F.detach().to(work_dtype(F.dtype)) for F in (A.left, A.right)]
    if any(F.shape[0] != F.shape[1] or not torch.equal(F, F.mH) for F in factors):
        return None
    left, right = (matrix_eigenvalues(F) for F in factors)
    values = torch.outer(left.values, right.values).flatten()
    largest = [float(part.values.abs().max()) if part.values.numel() else 0.0 for part in (left, right)]
    return Eigenvalues(values, torch.ones_like(values), left.noise * largest[1] + right.noise * largest[0])


@eigenvalues_rule.register(LowRank)
def _low_rank(A: LowRank) -> Eigenvalues | None:
    dim, rank = A.left.shape
    if A.right is not A.left or A.left.dtype.is_complex or A.weights.dtype.is_complex or rank >= dim:
        return None
    left = A.left.detach().to(work_dtype(A.left.dtype))
    R = torch.linalg.qr(left, mode="r").R
    return _with_zeros(matrix_eigenvalues((R * A.weights.detach().to(R.dtype)) @ R.mT), dim)


@eigenvalues_rule.register(Congruence)
def _congruence(A: Congruence) -> Eigenvalues | None:
    J = A.outer
    if A.middle is not None or not isinstance(J, Dense) or J.matrix.is_complex() != J.in_space.dtype.is_complex:
        return None
    sizes = torch.linalg.svdvals(J.matrix.detach().to(work_dtype(J.matrix.dtype))).double()
    noise = _noise(sizes.square(), rounding(A), max(J.matrix.shape))
    return _with_zeros(Eigenvalues.of(sizes.square(), noise), A.shape[0])


def _with_zeros(known: Eigenvalues, dim: int) -> Eigenvalues:
    """The eigenvalues of the part that is not zero, and the kernel."""
    missing = dim - len(known.values)
    if not missing:
        return known
    zero = known.values.new_zeros(1)
    return Eigenvalues(torch.cat([known.values, zero]), torch.cat([known.counts, zero + missing]), known.noise)


@eigenvalues_rule.register(BlockDiagonal)
def _blocks(A: BlockDiagonal) -> Eigenvalues | None:
    parts = [eigenvalues_rule(block) if block.shape[0] == block.shape[1] else None for block in A.blocks.values()]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or not parts:
        return None
    device = A.in_space.device
    values = torch.cat([part.values.to(device) for part in known])
    counts = torch.cat([part.counts.to(device) for part in known])
    return Eigenvalues(values, counts, max(part.noise for part in known))


@eigenvalues_rule.register(Sum)
def _sum(A: Sum) -> Eigenvalues | None:
    shift, rest = split_shift(A)
    if len(rest) > 1:
        entries = diagonal_rule(A) if Tag.DIAGONAL in A.tags else None
        return None if entries is None else Eigenvalues.of(entries.detach().real)
    known = eigenvalues_rule(rest[0] if rest else Identity(A.in_space))
    if known is None:
        return None
    values = known.values + shift if rest else shift * known.values
    noise = known.noise + (_noise(values, rounding(A), 1) if known.noise else 0.0)
    return Eigenvalues(values, known.counts, noise)


def split_shift(A: Sum) -> tuple[float, list[LinearOperator]]:
    """The multiple of the identity in a sum, and the other terms."""
    shift, rest = 0.0, []
    for term in A.terms:
        factor = identity_factor(term)
        if factor is None:
            rest.append(term)
        else:
            shift += factor
    return shift, rest


def identity_factor(A: LinearOperator) -> float | None:
    """The real c of an operator ``c * identity``, else None."""
    if isinstance(A, Identity):
        return 1.0
    if isinstance(A, Scaled) and isinstance(A.operator, Identity) and not complex(A.factor).imag:
        return complex(A.factor).real
    return None


@singledispatch
def floor_rule(A: LinearOperator) -> float | None:
    """A lower bound of the eigenvalues of a Hermitian operator that its structure and tags tell, or None.

    Register more with ``@floor_rule.register(MyOperator)``.
    """
    return 0.0 if Tag.PSD in A.tags else None


@floor_rule.register(Identity)
def _identity_floor(A: Identity) -> float:
    return 1.0


@floor_rule.register(Diagonal)
def _diagonal_floor(A: Diagonal) -> float | None:
    entries = A.in_space.ravel(A.entries).detach().real
    return float(entries.min()) if entries.numel() else None


@floor_rule.register(Scaled)
def _scaled_floor(A: Scaled) -> float | None:
    factor = complex(A.factor)
    known = floor_rule(A.operator) if not factor.imag and factor.real >= 0 else None
    return None if known is None else factor.real * known


@floor_rule.register(Sum)
def _sum_floor(A: Sum) -> float | None:
    total = 0.0
    for term in A.terms:
        part = floor_rule(term)
        if part is None:
            return None
        total += part
    return total


@floor_rule.register(BlockDiagonal)
def _blocks_floor(A: BlockDiagonal) -> float | None:
    parts = [floor_rule(block) for block in A.blocks.values()]
    known = [part for part in parts if part is not None]
    return min(known) if known and len(known) == len(parts) else None
