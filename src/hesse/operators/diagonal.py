"""A diagonal operator."""

from __future__ import annotations

from hesse.core import tree
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator, Tag


class Diagonal(LinearOperator):
    """``v -> d * v`` for a tree ``d``.

    Args:
        entries: the diagonal, a tree of the space.
        tags: further tags (PSD where the entries are known not to be negative); not checked.
    """

    def __init__(self, entries: Tree, tags: frozenset[Tag] = frozenset()) -> None:
        self.in_space = self.out_space = Space.of(entries)
        self.entries = entries
        own = {Tag.SYMMETRIC, Tag.DIAGONAL} | (set() if self.in_space.dtype.is_complex else {Tag.HERMITIAN})
        self.tags = frozenset(own) | tags

    def mv(self, v: Tree) -> Tree:
        return tree.map_tree(lambda d, x: d * x, self.entries, v)

    def mm(self, V: Tree) -> Tree:
        return self.mv(V)  # the entries broadcast over a leading axis

    def transpose(self) -> LinearOperator:
        return self
