"""The diagonal of a square operator: exact, or estimated with random signs."""

from __future__ import annotations

from functools import singledispatch
from itertools import count, islice

import torch
from torch import Tensor

from hesse.core import random
from hesse.core.batching import slices
from hesse.core.memory import Budget
from hesse.core.progress import track
from hesse.linalg.hutchinson import FEWEST, next_count
from hesse.linalg.options import check_choice, check_positive, require_square
from hesse.linalg.products import apply, rows_at_once, sign_vectors, unit_vectors, work_dtype
from hesse.operators import (
    Average,
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
    Tag,
)

_METHODS = ("auto", "exact", "hutchinson")


def diagonal(
    A: LinearOperator,
    *,
    method: str = "auto",
    rtol: float | None = None,
    generator: torch.Generator | None = None,
    memory: Budget | None = None,
) -> Tensor:
    """The diagonal ``[dim]`` of a square operator; ``A.in_space.unravel`` gives it names and shapes.

    Args:
        A: the operator.
        method: ``"exact"``; ``"hutchinson"``: the estimate of Bekas, Kokiopoulou and Saad (Applied Numerical
            Mathematics 57, 2007) with random signs; ``"auto"``: exact, unless an `rtol` is given and the
            operator has no structure that knows its diagonal.
        rtol: the estimate stops once its standard error, the 2-norm over the whole diagonal, is below this
            fraction of the 2-norm of the diagonal (0.05 by default). It never takes more products than the
            exact diagonal would: where it needs more, the exact one is computed.
        generator: source of the random signs.
        memory: bytes, fraction or text; by default the budget in force.

    Raises:
        StructureError: the operator is not square, or there is no such method.

    Cost: nothing but arithmetic where the structure knows it; exact: dim products, in blocks.
    """
    check_choice("diagonal", "method", method, _METHODS)
    require_square(A, "diagonal", "take the diagonal of A.T @ A or of A @ A.T, or hesse.dense(A)")
    check_positive("diagonal", rtol=rtol)
    if method == "auto":
        known = diagonal_rule(A)
        if known is not None:
            return known
    if method == "hutchinson" or (method == "auto" and rtol is not None):
        found = _hutchinson(A, 0.05 if rtol is None else rtol, generator or random.make_generator(), memory)
        if found is not None:
            return found
    return exact_diagonal(A, memory)


def exact_diagonal(A: LinearOperator, memory: Budget | None = None) -> Tensor:
    """The diagonal ``[dim]`` from the structure of the operator, or by products with the unit vectors."""
    known = diagonal_rule(A)
    if known is not None:
        return known
    dim = A.shape[0]
    result = torch.empty(dim, dtype=A.out_space.dtype, device=A.out_space.device)
    for part in slices(dim, rows_at_once(A, dim, "the exact diagonal", memory=memory), "diagonal"):
        units = A.in_space.unravel(unit_vectors(A.in_space, part.start, part.stop))
        result[part] = A.out_space.ravel(A.mm(units), 1)[:, part].diagonal()
    return result


def _hutchinson(A: LinearOperator, rtol: float, generator: torch.Generator, memory: Budget | None) -> Tensor | None:
    """The mean of ``conj(v) * A v``; None once the exact diagonal would have been as cheap."""
    dim, dtype = A.shape[0], work_dtype(A.out_space.dtype)
    mean = torch.zeros(dim, dtype=dtype, device=A.out_space.device)
    spread, taken, wanted = 0.0, 0, FEWEST
    at_once = rows_at_once(A, max(dim, 1), "the estimate of the diagonal", memory=memory)
    for _ in track(count(), "diagonal (random signs)"):
        if taken + wanted >= dim:
            return None
        wanted = min(wanted, at_once)
        probes = sign_vectors(A.in_space, wanted, generator)
        samples = probes.conj() * apply(A, probes)
        # Chan's update of mean and summed squared deviation, in blocks
        block_mean = samples.mean(0)
        shift = block_mean - mean
        spread += float((samples - block_mean).abs().square().sum())
        spread += float(shift.abs().square().sum()) * taken * wanted / (taken + wanted)
        mean = mean + shift * (wanted / (taken + wanted))
        taken += wanted
        error = (spread / max(taken - 1, 1) / taken) ** 0.5
        size = float(torch.linalg.vector_norm(mean))
        if taken >= FEWEST and error <= rtol * size:
            return mean.to(A.out_space.dtype)
        wanted = next_count(taken, error, rtol * size)
    return None


@singledispatch
def diagonal_rule(A: LinearOperator) -> Tensor | None:
    """The open rule behind `diagonal`: ``[dim]``, or None where it takes many products."""
    if Tag.DIAGONAL in A.tags:
        ones = torch.ones(A.in_space.dim, dtype=A.in_space.dtype, device=A.in_space.device)
        return A.out_space.ravel(A.mv(A.in_space.unravel(ones)))
    return None


@diagonal_rule.register(Identity)
def _identity(A: Identity) -> Tensor:
    return torch.ones(A.in_space.dim, dtype=A.in_space.dtype, device=A.in_space.device)


@diagonal_rule.register(Dense)
def _dense(A: Dense) -> Tensor:
    return A.matrix.diagonal().to(A.out_space.dtype, copy=True)


@diagonal_rule.register(Diagonal)
def _diagonal(A: Diagonal) -> Tensor:
    return A.in_space.ravel(A.entries).clone()


@diagonal_rule.register(LowRank)
def _low_rank(A: LowRank) -> Tensor:
    return (A.left * A.weights * A.right).sum(-1)


@diagonal_rule.register(Kronecker)
def _kronecker(A: Kronecker) -> Tensor:
    rows, columns = A.right.shape
    at = torch.arange(A.shape[0], device=A.left.device)
    return A.left[at // rows, at // columns] * A.right[at % rows, at % columns]


@diagonal_rule.register(Sum)
def _sum(A: Sum) -> Tensor | None:
    total: Tensor | None = None
    for term in A.terms:
        part = diagonal_rule(term)
        if part is None:
            return None
        total = part if total is None else total + part
    return total


@diagonal_rule.register(Scaled)
def _scaled(A: Scaled) -> Tensor | None:
    known = diagonal_rule(A.operator)
    return None if known is None else A.factor * known


@diagonal_rule.register(Conjugate)
def _conjugate(A: Conjugate) -> Tensor | None:
    known = diagonal_rule(A.operator)
    return None if known is None else known.conj().resolve_conj()


@diagonal_rule.register(Composed)
def _composed(A: Composed) -> Tensor | None:
    if isinstance(A.first, Dense) and isinstance(A.second, Dense):
        return (A.first.matrix * A.second.matrix.mT).sum(-1)
    if not (A.first.tags | A.second.tags) & {Tag.DIAGONAL}:
        return None
    first, second = diagonal_rule(A.first), diagonal_rule(A.second)
    return None if first is None or second is None else first * second


@diagonal_rule.register(Congruence)
def _congruence(A: Congruence) -> Tensor | None:
    if A.middle is None:
        return column_squares_rule(A.outer)
    if not isinstance(A.outer, Dense) or A.outer.matrix.is_complex() != A.in_space.dtype.is_complex:
        return None
    squares = A.outer.matrix.abs().square()
    middle = diagonal_rule(A.middle) if Tag.DIAGONAL in A.middle.tags else None
    return None if middle is None else (middle[:, None] * squares).sum(0)


@singledispatch
def column_squares_rule(J: LinearOperator) -> Tensor | None:
    """The open rule behind the diagonal of ``J.H @ J``: ``[in]``, the squared 2-norms of the columns, or None."""
    return None


@column_squares_rule.register(Dense)
def _dense_columns(J: Dense) -> Tensor | None:
    if J.matrix.is_complex() != J.in_space.dtype.is_complex:
        return None
    return J.matrix.abs().square().sum(0).to(J.in_space.dtype)


@diagonal_rule.register(Average)
def _average(A: Average) -> Tensor | None:
    if any(diagonal_rule(first) is None for first in islice(A.operators(), 1)):
        return None
    return A.combine(exact_diagonal)


@diagonal_rule.register(BlockDiagonal)
def _blocks(A: BlockDiagonal) -> Tensor | None:
    parts: list[Tensor] = []
    for block in A.blocks.values():
        part = diagonal_rule(block) if block.shape[0] == block.shape[1] else None
        if part is None:
            return None
        parts.append(part.to(A.out_space.dtype))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=A.out_space.dtype, device=A.out_space.device)
