"""An operator given by functions."""

from __future__ import annotations

from collections.abc import Callable

from hesse.core.errors import SymmetryError
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator, Tag

Map = Callable[[Tree], Tree]


class Function(LinearOperator):
    """The linear map ``v -> mv(v)`` whose transpose is ``u -> rmv(u)``.

    Args:
        in_space, out_space: the spaces.
        mv: the map on one tree of `in_space`.
        rmv: its transpose on one tree of `out_space`; may be omitted for an operator tagged SYMMETRIC.
        tags: what is known of it.
    """

    def __init__(
        self, in_space: Space, out_space: Space, mv: Map, rmv: Map | None = None, tags: frozenset[Tag] = frozenset()
    ) -> None:
        if rmv is None and Tag.SYMMETRIC not in tags:
            raise SymmetryError(
                "Function needs rmv, its transpose, unless it is tagged SYMMETRIC.",
                f"tags {sorted(t.name for t in tags)}",
                "pass rmv, or tags=frozenset({Tag.SYMMETRIC}) for an operator equal to its transpose",
            )
        self.in_space, self.out_space, self.tags = in_space, out_space, tags
        self._mv, self._rmv = mv, rmv if rmv is not None else mv

    def mv(self, v: Tree) -> Tree:
        return self._mv(v)

    def transpose(self) -> LinearOperator:
        return Function(self.out_space, self.in_space, self._rmv, self._mv, self.tags)
