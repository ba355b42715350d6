"""Factorizations by those of the parts of an operator."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from hesse.core.memory import Budget
from hesse.linalg.answer import Answer, conjugated, rescaled, side_by_side
from hesse.linalg.factor import Factorization, TransposedFactorization, factor, factor_rule
from hesse.linalg.options import rounding
from hesse.operators import BlockDiagonal, Conjugate, Dense, Kronecker, LinearOperator, Scaled
from hesse.operators.storage import storable


class BlockFactorization(Factorization):
    """Blocks along the diagonal, each with its factors.

    Args:
        operator: block-diagonal.
        blocks: the factors of its blocks, by the same names.
    """

    def __init__(self, operator: LinearOperator, blocks: dict[str, Factorization]) -> None:
        super().__init__(operator, ", ".join(sorted({block.method for block in blocks.values()})))
        self.blocks = blocks
        missing = min(self.shape) - sum(min(block.shape) - block.truncated for block in blocks.values())
        self.truncated = missing

    @property
    def condition(self) -> float | None:
        """The largest norm of a block times the largest of an inverse."""
        return self._condition

    @cached_property
    def _condition(self) -> float | None:
        sizes = [block.norm_bound for block in self.blocks.values() if min(block.shape)]
        known = [block.condition for block in self.blocks.values() if min(block.shape)]
        inverses = [c / size for c, size in zip(known, sizes, strict=True) if c is not None and size]
        if any(c is None for c in known):
            return None
        return max(sizes) * max(inverses) if inverses else 1.0

    def answer(self, B: Tensor, *, adjoint: bool = False) -> Answer:
        """Block by block."""
        blocks = list(self.blocks.values())
        parts = B.split([block.shape[1 if adjoint else 0] for block in blocks], dim=-1)
        answers = [block.answer(part, adjoint=adjoint) for block, part in zip(blocks, parts, strict=True)]
        return replace(side_by_side(answers, B), condition=lambda: self.condition, truncated=self.truncated, method=self.method)

    def log_abs_det(self) -> float:
        """The sum over the blocks, which are square where the whole is not singular."""
        return sum(block.logdet() for block in self.blocks.values())


class KroneckerFactorization(Factorization):
    """``left (x) right`` with the factors of both, which are square and not singular.

    Args:
        operator: the Kronecker product.
        left, right: the factors of its factors.
    """

    def __init__(self, operator: LinearOperator, left: Factorization, right: Factorization) -> None:
        super().__init__(operator, "kronecker")
        self.left, self.right = left, right

    @property
    def condition(self) -> float | None:
        """The product of those of the factors."""
        first, second = self.left.condition, self.right.condition
        return None if first is None or second is None else first * second

    def answer(self, B: Tensor, *, adjoint: bool = False) -> Answer:
        """Every column with the left factor, then every row with the right one."""
        count, p, r = len(B), self.left.shape[0], self.right.shape[0]
        first = self.left.answer(B.reshape(count, p, r).mT.reshape(count * r, p), adjoint=adjoint)
        second = self.right.answer(first.value.reshape(count, r, p).mT.reshape(count * p, r), adjoint=adjoint)
        return Answer(second.value.reshape(count, p * r), lambda: self.condition, truncated=0)

    def log_abs_det(self) -> float:
        """``r log|det left| + p log|det right|`` for factors of size p and r."""
        return self.right.shape[0] * self.left.log_abs_det() + self.left.shape[0] * self.right.log_abs_det()


class ScaledFactorization(Factorization):
    """A number times a factored operator.

    Args:
        operator: the multiple.
        factor: the number, not zero.
        factors: of the operator that it multiplies.
    """

    def __init__(self, operator: LinearOperator, factor: complex, factors: Factorization) -> None:
        super().__init__(operator, factors.method)
        self.factor, self.factors, self.truncated = factor, factors, factors.truncated

    @property
    def condition(self) -> float | None:
        """That of the operator."""
        return self.factors.condition

    def answer(self, B: Tensor, *, adjoint: bool = False) -> Answer:
        """That of the operator, divided by the number."""
        factor = self.factor.conjugate() if adjoint else self.factor
        return rescaled(self.factors.answer(B, adjoint=adjoint), factor)

    def log_abs_det(self) -> float:
        """``dim log |factor|`` more."""
        shift = torch.tensor(abs(self.factor), dtype=torch.float64).log()
        return self.factors.log_abs_det() + self.shape[0] * float(shift)


class ConjugateFactorization(Factorization):
    """The entrywise conjugate of a factored operator.

    Args:
        operator: the conjugate.
        factors: of the operator itself.
    """

    def __init__(self, operator: LinearOperator, factors: Factorization) -> None:
        super().__init__(operator, factors.method)
        self.factors, self.truncated = factors, factors.truncated

    @property
    def condition(self) -> float | None:
        """That of the operator."""
        return self.factors.condition

    def answer(self, B: Tensor, *, adjoint: bool = False) -> Answer:
        """The conjugate of that for the conjugate."""
        return conjugated(self.factors.answer(B.conj().resolve_conj(), adjoint=adjoint))

    def log_abs_det(self) -> float:
        """That of the operator."""
        return self.factors.log_abs_det()


@factor_rule.register(BlockDiagonal)
def _blocks(A: BlockDiagonal, memory: Budget | None) -> Factorization | None:
    found = {name: factor(block, memory=memory) for name, block in A.blocks.items()}
    singular = any(block.truncated for block in found.values())
    if singular or not found:
        return None  # what counts as zero is a matter of the whole
    blocks = {name: block.operator for name, block in found.items()}
    return BlockFactorization(BlockDiagonal(blocks, A.in_space, A.out_space), found)


@factor_rule.register(Kronecker)
def _kronecker(A: Kronecker, memory: Budget | None) -> Factorization | None:
    if A.left.shape[0] != A.left.shape[1] or A.right.shape[0] != A.right.shape[1]:
        return None
    left, right = (factor(Dense(part.detach()), memory=memory) for part in (A.left, A.right))
    found = KroneckerFactorization(A, left, right)
    known = None if left.truncated or right.truncated else found.condition
    return found if known is not None and known * rounding(A) < 1 else None


@factor_rule.register(Scaled)
def _scaled(A: Scaled, memory: Budget | None) -> Factorization | None:
    number = complex(A.factor)
    if not number:
        return None
    inner = factor(A.operator, memory=memory)
    return ScaledFactorization(Scaled(A.factor, inner.operator), number, inner)


@factor_rule.register(Conjugate)
def _conjugate(A: Conjugate, memory: Budget | None) -> Factorization | None:
    inner = factor(A.operator, memory=memory)
    return ConjugateFactorization(Conjugate(inner.operator), inner)


@storable.register(BlockFactorization)
def _stored_blocks(A: BlockFactorization) -> dict[str, object]:
    return {"operator": A.operator, "blocks": A.blocks}


@storable.register(KroneckerFactorization)
def _stored_kronecker(A: KroneckerFactorization) -> dict[str, object]:
    return {"operator": A.operator, "left": A.left, "right": A.right}


@storable.register(ScaledFactorization)
def _stored_scaled(A: ScaledFactorization) -> dict[str, object]:
    return {"operator": A.operator, "factor": A.factor, "factors": A.factors}


@storable.register(ConjugateFactorization)
def _stored_conjugate(A: ConjugateFactorization) -> dict[str, object]:
    return {"operator": A.operator, "factors": A.factors}


@storable.register(TransposedFactorization)
def _stored_transpose(A: TransposedFactorization) -> dict[str, object]:
    return {"factors": A.factors}
