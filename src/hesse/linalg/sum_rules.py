"""Sums whose structure solves them: a diagonal plus low rank, Kronecker products, blocks, matrices; sums of sparse ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import singledispatch

import torch
from torch import Tensor

from hesse.linalg.answer import Answer, rescaled, solve_matrix
from hesse.linalg.dense import matrix_for
from hesse.linalg.diagonal import diagonal_rule
from hesse.linalg.products import work_dtype
from hesse.linalg.solve_rules import Inner, solve_diagonal, solve_rule
from hesse.linalg.sparse_direct import solve_sparse
from hesse.operators import (
    BlockDiagonal,
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

Terms = list[tuple[complex, LinearOperator]]


def flatten_sum(A: LinearOperator, factor: complex = 1 + 0j) -> Iterator[tuple[complex, LinearOperator]]:
    """The terms of nested sums and multiples, each with its factor."""
    if isinstance(A, Sum):
        for term in A.terms:
            yield from flatten_sum(term, factor)
    elif isinstance(A, Scaled):
        yield from flatten_sum(A.operator, factor * complex(A.factor))
    else:
        yield factor, A


@solve_rule.register(Sum)
def _sum(A: Sum, B: Tensor, inner: Inner) -> Answer | None:
    """By the first structure that fits."""
    diagonal, others = _split(A, B.dtype)
    if not others:
        return solve_diagonal(diagonal, B)
    for rule in (_plus_low_rank, _shifted, _plus_kronecker, _blockwise):
        found = rule(diagonal, others, B, inner)
        if found is not None:
            return found
    known = all(isinstance(term, (Dense, LowRank, Kronecker)) for _, term in others)
    if known and any(isinstance(term, Dense) for _, term in others):
        return solve_matrix(matrix_for(A, "the factors", 5), B)
    return solve_sparse(A, B)


def _split(A: Sum, dtype: torch.dtype) -> tuple[Tensor, Terms]:
    """The diagonal part of the sum ``[dim]`` (zeros if there is none), and the other terms."""
    diagonal, others = torch.zeros(A.shape[0], dtype=dtype, device=A.out_space.device), []
    for factor, term in flatten_sum(A):
        entries = diagonal_rule(term) if Tag.DIAGONAL in term.tags else None
        if entries is None:
            others.append((factor, term))
        else:
            diagonal = diagonal + _number(factor, dtype) * entries.detach().to(dtype)
    return diagonal, others


def _number(value: complex, dtype: torch.dtype) -> complex | float:
    return value if dtype.is_complex else value.real


def _plus_low_rank(diagonal: Tensor, others: Terms, B: Tensor, inner: Inner) -> Answer | None:
    """A diagonal plus low ranks, by the identity of Woodbury (1950)."""
    if bool((diagonal == 0).any()):
        return None
    factors: list[tuple[Tensor, Tensor, Tensor]] = []
    for factor, term in others:
        if not isinstance(term, LowRank):
            return None
        factors.append((term.left, _number(factor, B.dtype) * term.weights, term.right))
    U, weights, V = (torch.cat([factor[i] for factor in factors], dim=-1).detach().to(B.dtype) for i in range(3))
    if len(weights) >= len(diagonal):
        return None
    scaled_U = U / diagonal[:, None]
    small = torch.eye(len(weights), dtype=B.dtype, device=B.device) + weights[:, None] * (V.mT @ scaled_U)
    plain = B / diagonal
    middle = solve_matrix(small, (plain @ V) * weights)
    return Answer(plain - middle.value @ scaled_U.mT, None, 0, middle.trouble)


def _plus_kronecker(diagonal: Tensor, others: Terms, B: Tensor, inner: Inner) -> Answer | None:
    """A multiple of the identity plus a Kronecker product of Hermitian factors, by their eigenvectors."""
    (factor, term), *rest = others
    if rest or not isinstance(term, Kronecker) or not len(diagonal) or not bool((diagonal == diagonal[0]).all()):
        return None
    first, second = (_eigenpairs(matrix.detach().to(B.dtype)) for matrix in (term.left, term.right))
    if first is None or second is None:
        return None
    (left, P), (right, Q) = first, second
    values = _number(factor, B.dtype) * torch.outer(left, right) + diagonal[0]
    rotated = P.mH @ B.reshape(len(B), len(left), len(right)) @ Q.conj()
    found = solve_diagonal(values.flatten(), rotated.flatten(1))
    value = P @ found.value.reshape(rotated.shape) @ Q.mT
    return replace(found, value=value.flatten(1))


@singledispatch
def shift_rule(A: LinearOperator, by: float) -> LinearOperator | None:
    """``A + by * identity`` as an operator of A's own structure, whose systems are solved by it; else None.

    Open: ``@shift_rule.register(MyOperator)``.

    Args:
        A: the operator.
        by: a real number.
    """
    return None


def _shifted(diagonal: Tensor, others: Terms, B: Tensor, inner: Inner) -> Answer | None:
    """A multiple of the identity plus an operator that takes it in."""
    (factor, term), *rest = others
    if rest or factor.imag or not factor.real or not len(diagonal) or not bool((diagonal == diagonal[0]).all()):
        return None
    shifted = None if diagonal.is_complex() else shift_rule(term, float(diagonal[0]) / factor.real)
    if shifted is None:
        return None
    return rescaled(inner(shifted, B), factor.real)


def _eigenpairs(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """Of a Hermitian matrix; None for any other."""
    if matrix.shape[0] != matrix.shape[1]:
        return None
    skew, size = (matrix - matrix.mH).abs().max(), matrix.abs().max()
    if bool(skew > 16 * torch.finfo(work_dtype(matrix.dtype)).eps * size):
        return None
    values, vectors = torch.linalg.eigh((matrix + matrix.mH) / 2)
    return values, vectors


def _blockwise(diagonal: Tensor, others: Terms, B: Tensor, inner: Inner) -> Answer | None:
    """A diagonal plus block-diagonal operators over the same blocks, block by block."""
    layouts = []
    for _, term in others:
        if not isinstance(term, BlockDiagonal):
            return None
        layouts.append({name: (block.in_space, block.out_space) for name, block in term.blocks.items()})
    if any(layout != layouts[0] for layout in layouts) or any(into != out for into, out in layouts[0].values()):
        return None
    blocks: dict[str, LinearOperator] = {}
    sizes = [into.dim for into, _ in layouts[0].values()]
    for name, entries in zip(layouts[0], diagonal.split(sizes), strict=True):
        parts = [_multiple(factor, term.blocks[name]) for factor, term in others if isinstance(term, BlockDiagonal)]
        blocks[name] = Sum(*parts, *_shift(entries, parts[0])) if len(parts) > 1 or bool(entries.any()) else parts[0]
    return solve_rule(BlockDiagonal(blocks), B, inner)


def _multiple(factor: complex, operator: LinearOperator) -> LinearOperator:
    return operator if factor == 1 else Scaled(factor, operator)


def _shift(entries: Tensor, like: LinearOperator) -> list[LinearOperator]:
    if not bool(entries.any()):
        return []
    if bool((entries == entries[0]).all()):
        return [Scaled(entries[0].item(), Identity(like.in_space))]
    return [Diagonal(like.in_space.unravel(entries))]
