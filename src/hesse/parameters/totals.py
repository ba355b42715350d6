"""Sums over the batches of a data set, in float32 for 16-bit numbers."""

from __future__ import annotations

from torch import Tensor

from hesse.core import tree
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.parameters.contractions.uses import wide


class Total:
    """A sum of trees of one space (batch axes in front allowed)."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._parts: list[Tensor] | None = None

    def add(self, part: Tree) -> None:
        """Add a tree."""
        leaves = [wide(leaf) for leaf in tree.leaves(part)]
        if self._parts is None:
            self._parts = [leaf.clone() for leaf in leaves]
        else:
            for total, leaf in zip(self._parts, leaves, strict=True):
                total.add_(leaf)

    def result(self) -> Tree:
        """The sum, in the dtypes of the space."""
        assert self._parts is not None
        return self._space.rebuild([leaf.to(dtype) for leaf, dtype in zip(self._parts, self._space.dtypes, strict=True)])


class Spread:
    """The mean and the sum of squared distances from it, of rows that come in batches (Chan, Golub, LeVeque 1979)."""

    def __init__(self, space: Space) -> None:
        self._space, self._rows = space, 0
        self._means: list[Tensor] = []
        self._squares: list[Tensor] = []

    def add(self, rows: int, mean: Tree, squares: Tree) -> None:
        """Add a batch of so many rows with its mean and its sum of squared distances from that."""
        means, parts = ([wide(leaf) for leaf in tree.leaves(part)] for part in (mean, squares))
        if not self._rows:
            self._rows, self._means, self._squares = rows, means, parts
            return
        total = self._rows + rows
        for i, (center, part) in enumerate(zip(means, parts, strict=True)):
            apart = center - self._means[i]
            self._squares[i] = self._squares[i] + part + apart.square() * (self._rows * rows / total)
            self._means[i] = self._means[i] + apart * (rows / total)
        self._rows = total

    def variance(self, correction: int) -> Tree:
        """The sum of squared distances over (rows - correction); NaN where that is not positive."""
        left = self._rows - correction
        found = [part / left if left > 0 else part * float("nan") for part in self._squares]
        return self._space.rebuild([part.to(dtype) for part, dtype in zip(found, self._space.dtypes, strict=True)])
