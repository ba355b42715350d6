"""The identity."""

from __future__ import annotations

from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator, Tag


class Identity(LinearOperator):
    """The identity of a space."""

    tags = frozenset(Tag)

    def __init__(self, space: Space) -> None:
        self.in_space = self.out_space = space

    def mv(self, v: Tree) -> Tree:
        return v

    def mm(self, V: Tree) -> Tree:
        return V

    def transpose(self) -> LinearOperator:
        return self


def identity(space: Space) -> Identity:
    """The identity operator of a space: ``hesse.identity(A.in_space)``."""
    return Identity(space)
