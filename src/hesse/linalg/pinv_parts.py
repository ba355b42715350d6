"""Pseudo-inverses through those of the parts of an operator, with one cut-off for the whole."""

from __future__ import annotations

import math

from hesse.core.memory import Budget
from hesse.linalg.norm import norm
from hesse.linalg.pinv_general import general_pinv
from hesse.linalg.pinv_matrix import cut_of
from hesse.linalg.pinv_rules import pinv_rule
from hesse.operators import BlockDiagonal, Congruence, Conjugate, LinearOperator, Restriction, Scaled
from hesse.operators.pseudo_inverse import Kept, PseudoInverse


def part_pinv(A: LinearOperator, rtol: float | None, memory: Budget | None) -> LinearOperator:
    """By the structure, else by the matrix or LSMR."""
    known = pinv_rule(A, rtol, memory)
    return general_pinv(A, rtol, memory) if known is None else known


def _plain(inverse: LinearOperator) -> LinearOperator:
    return inverse.inverse if isinstance(inverse, PseudoInverse) else inverse


def _method(inverse: LinearOperator) -> str:
    return str(getattr(inverse, "method", "structure"))


@pinv_rule.register(PseudoInverse)
def _of_inverse(A: PseudoInverse, rtol: float | None, memory: Budget | None) -> LinearOperator | None:
    return pinv_rule(A.inverse, rtol, memory)


@pinv_rule.register(Scaled)
def _scaled(A: Scaled, rtol: float | None, memory: Budget | None) -> LinearOperator | None:
    factor = complex(A.factor)
    if factor == 0:
        nothing = Kept.by_values(0, min(A.shape), 0.0, 0.0, 0.0)
        return PseudoInverse(Scaled(0.0, A.operator.H), nothing, "zero")
    inner = part_pinv(A.operator, rtol, memory)
    kept = Kept.of(inner)
    largest = None if kept.largest is None else lambda: abs(factor) * (getattr(inner, "largest", None) or 0.0)
    known = Kept(kept.rank, kept.truncated, largest, kept.condition, kept.gap)
    return PseudoInverse(Scaled(1 / A.factor, _plain(inner)), known, _method(inner))


@pinv_rule.register(Conjugate)
def _conjugate(A: Conjugate, rtol: float | None, memory: Budget | None) -> LinearOperator | None:
    inner = part_pinv(A.operator, rtol, memory)
    return PseudoInverse(Conjugate(_plain(inner)), Kept.of(inner), _method(inner))


@pinv_rule.register(Restriction)
def _restriction(A: Restriction, rtol: float | None, memory: Budget | None) -> LinearOperator | None:
    """Of one that only puts the leaves into another order."""
    whole = A.operator
    if len(A.inputs) != len(whole.in_space.names) or len(A.outputs) != len(whole.out_space.names):
        return None
    inner = part_pinv(whole, rtol, memory)
    return PseudoInverse(Restriction(_plain(inner), A.out_space, A.in_space), Kept.of(inner), _method(inner))


@pinv_rule.register(Congruence)
def _congruence(A: Congruence, rtol: float | None, memory: Budget | None) -> LinearOperator | None:
    """``(J^H J)^+ = J^+ (J^+)^H``, where the structure of J knows its own: the singular values are the squares."""
    J = A.outer
    if A.middle is not None or J.in_space.dtype.is_complex != J.out_space.dtype.is_complex:
        return None
    cut = cut_of(A.shape, A.in_space.dtype, rtol)
    inner = pinv_rule(J, math.sqrt(cut), memory)
    if inner is None or getattr(inner, "rank", None) is None:
        return None
    known = Kept.of(inner)
    rank = int(known.rank or 0)

    def squared(name: str) -> float | None:
        value = getattr(inner, name, None)
        return None if value is None else value**2

    truncated = A.shape[0] - rank
    gap = (lambda: squared("gap")) if known.truncated else math.inf
    kept = Kept(rank, truncated, lambda: squared("largest"), lambda: squared("condition"), gap)
    return PseudoInverse(Congruence(_plain(inner).H), kept, _method(inner))


@pinv_rule.register(BlockDiagonal)
def _blocks(A: BlockDiagonal, rtol: float | None, memory: Budget | None) -> LinearOperator | None:
    """Each block's own, and again with a larger tolerance where its largest singular value is not that of the whole."""
    rtol = cut_of(A.shape, A.out_space.dtype, rtol)
    found = {name: part_pinv(block, rtol, memory) for name, block in A.blocks.items()}
    tops = {name: _largest(block, found[name]) for name, block in A.blocks.items()}
    top = max(tops.values(), default=0.0)
    for name, own in tops.items():
        condition = getattr(found[name], "condition", None)
        if 0 < own < top and (condition is None or own / condition <= rtol * top):
            found[name] = part_pinv(A.blocks[name], rtol * top / own, memory)
    inverse = BlockDiagonal({name: _plain(part) for name, part in found.items()}, A.out_space, A.in_space)
    return PseudoInverse(inverse, _joined(A, found, tops), ", ".join(sorted({_method(part) for part in found.values()})))


def _largest(A: LinearOperator, inverse: LinearOperator) -> float:
    """The largest singular value of `A`, which its pseudo-inverse may know."""
    known = getattr(inverse, "largest", None)
    return known if known is not None else float(norm(A, ord=2)) if min(A.shape) else 0.0


def _joined(A: BlockDiagonal, found: dict[str, LinearOperator], tops: dict[str, float]) -> Kept:
    top = max(tops.values(), default=0.0)
    ranks = [getattr(part, "rank", None) for part in found.values()]
    known = [rank for rank in ranks if rank is not None]
    if len(known) < len(ranks):
        return Kept(None, None, top)

    def ends() -> tuple[float | None, float | None]:
        """The smallest singular value kept, and the largest dropped."""
        smallest, dropped = math.inf, 0.0
        for name, part in found.items():
            condition, gap = getattr(part, "condition", None), getattr(part, "gap", None)
            if condition is None or gap is None:
                return None, None
            if part.rank:  # pyright: ignore[reportAttributeAccessIssue]
                smallest = min(smallest, tops[name] / condition)
                dropped = max(dropped, tops[name] / condition / gap)
            elif name in tops:
                dropped = max(dropped, tops[name])
        return smallest, dropped

    def condition() -> float | None:
        smallest, _ = ends()
        return None if smallest is None else top / smallest if sum(known) else 1.0

    def gap() -> float | None:
        smallest, dropped = ends()
        if smallest is None or dropped is None:
            return None
        return smallest / dropped if dropped and sum(known) else math.inf

    return Kept(sum(known), min(A.shape) - sum(known), top, condition, gap)
