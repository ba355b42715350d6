"""A pseudo-inverse: the operator that does the products, and what was kept and dropped to make it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator, Tag
from hesse.operators.storage import storable

Size: TypeAlias = float | Callable[[], float | None] | None


@dataclass(frozen=True)
class Kept:
    """Which singular values a pseudo-inverse inverts, and which it takes for zero; None for what the method does not know.

    The last three are numbers, or functions that find them when somebody asks.

    Attributes:
        rank: how many are inverted.
        truncated: how many of the ``min(out, in)`` are not.
        largest: the largest of all.
        condition: the largest over the smallest that is inverted; 1 if none is.
        gap: the smallest that is inverted over the largest that is not; infinite if those are zero, or if all are inverted.
    """

    rank: int | None
    truncated: int | None
    largest: Size = field(default=None, repr=False)
    condition: Size = field(default=None, repr=False)
    gap: Size = field(default=None, repr=False)

    @classmethod
    def of(cls, inverse: LinearOperator) -> Kept:
        """What any pseudo-inverse tells by its attributes."""
        get: Callable[[str], Any] = lambda name: getattr(inverse, name, None)  # noqa: E731
        return cls(get("rank"), get("truncated"), get("largest"), lambda: get("condition"), lambda: get("gap"))

    @classmethod
    def by_values(cls, rank: int, truncated: int, largest: float, smallest: float, dropped: float) -> Kept:
        """From the extreme singular values: the smallest that is inverted, the largest that is not (0 if there is none)."""
        condition = largest / smallest if rank else 1.0
        return cls(rank, truncated, largest, condition, smallest / dropped if rank and dropped else math.inf)


class PseudoInverse(LinearOperator):
    """The Moore-Penrose inverse of an operator, made by `pinv`.

    Args:
        inverse: the operator that does the products, from the space that the operator maps to into the one it maps from.
        kept: what is known of the singular values.
        method: how it was found: ``"dense"``, ``"diagonal"``, ``"lsmr"``, ...

    Attributes:
        rank: number of singular values that are inverted, or None where the method does not know it.
        truncated: how many of the ``min(out, in)`` are taken for zero, or None.
    """

    def __init__(self, inverse: LinearOperator, kept: Kept, method: str) -> None:
        self.inverse, self.kept, self.method = inverse, kept, method
        self.in_space, self.out_space = inverse.in_space, inverse.out_space
        self.tags: frozenset[Tag] = inverse.tags
        self.rank, self.truncated = kept.rank, kept.truncated

    @cached_property
    def largest(self) -> float | None:
        """The largest singular value of the operator that was inverted."""
        return _found(self.kept.largest)

    @cached_property
    def condition(self) -> float | None:
        """The largest singular value over the smallest one that is inverted; found at the first access where it is costly."""
        return _found(self.kept.condition)

    @cached_property
    def gap(self) -> float | None:
        """The smallest singular value that is inverted over the largest that is not: near 1 the rank is a matter of taste."""
        return _found(self.kept.gap)

    def mv(self, v: Tree) -> Tree:
        return self.inverse.mv(v)

    def mm(self, V: Tree) -> Tree:
        return self.inverse.mm(V)

    def transpose(self) -> LinearOperator:
        return PseudoInverse(self.inverse.T, self.kept, self.method)

    def __repr__(self) -> str:
        rank = "" if self.rank is None else f", rank {self.rank}"
        dropped = f", {self.truncated} singular values dropped" if self.truncated else ""
        return f"PseudoInverse({self.shape[0]} x {self.shape[1]}{rank}{dropped}, by {self.method})"

    @classmethod
    def from_stored(
        cls, inverse: LinearOperator, method: str, counts: tuple[int | None, ...], sizes: tuple[float | None, ...]
    ) -> PseudoInverse:
        """The pseudo-inverse that was saved."""
        return cls(inverse, Kept(counts[0], counts[1], *sizes), method)


def _found(size: Size) -> float | None:
    return size() if callable(size) else size


@storable.register(PseudoInverse)
def _stored(A: PseudoInverse) -> dict[str, object]:
    sizes = (A.largest, A.condition, A.gap)
    return {"inverse": A.inverse, "method": A.method, "counts": (A.rank, A.truncated), "sizes": sizes}
