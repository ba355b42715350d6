"""An operator of low rank, ``U diag(s) V^T``."""

from __future__ import annotations

from torch import Tensor

from hesse.core.errors import StructureError
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator, Tag, flat_space


class LowRank(LinearOperator):
    """``U diag(s) V^T``: `left` ``[out, r]``, `weights` ``[r]`` (ones by default), `right` ``[in, r]`` (`left` by default).

    With `right` omitted the operator is ``U diag(s) U^T``, tagged SYMMETRIC; it is PSD where no weight is negative.
    """

    def __init__(
        self,
        left: Tensor,
        weights: Tensor | None = None,
        right: Tensor | None = None,
        in_space: Space | None = None,
        out_space: Space | None = None,
    ) -> None:
        self.left, self.right = left, left if right is None else right
        self.weights = left.new_ones(left.shape[-1]) if weights is None else weights
        ranks = {self.left.shape[-1], self.right.shape[-1], self.weights.shape[-1]}
        if self.left.ndim != 2 or self.right.ndim != 2 or self.weights.ndim != 1 or len(ranks) != 1:
            shapes = [tuple(t.shape) for t in (self.left, self.weights, self.right)]
            raise StructureError(
                "LowRank needs left [out, r], weights [r], right [in, r].", f"shapes {shapes}", "pass one rank r to all three"
            )
        if in_space is None and right is None:
            in_space = out_space
        self.in_space = flat_space(self.right.shape[0], left.dtype, left.device) if in_space is None else in_space
        if out_space is None and right is None:
            out_space = self.in_space
        self.out_space = flat_space(left.shape[0], left.dtype, left.device) if out_space is None else out_space
        if (self.left.shape[0], self.right.shape[0]) != self.shape:
            raise StructureError(
                "The factors do not fit the spaces.",
                f"factors of {self.left.shape[0]} and {self.right.shape[0]} rows for spaces of {self.shape}",
                "pass spaces whose dimensions are the numbers of rows",
            )
        tags: set[Tag] = set()
        if right is None:
            is_complex = left.dtype.is_complex or self.weights.dtype.is_complex
            tags = {Tag.SYMMETRIC} if is_complex else {Tag.SYMMETRIC, Tag.HERMITIAN}
            if not is_complex and bool((self.weights >= 0).all()):
                tags.add(Tag.PSD)
        self.tags = frozenset(tags)

    def mv(self, v: Tree) -> Tree:
        return self.out_space.unravel(self.left @ (self.weights * (self.right.mT @ self.in_space.ravel(v))))

    def mm(self, V: Tree) -> Tree:
        return self.out_space.unravel(((self.in_space.ravel(V, 1) @ self.right) * self.weights) @ self.left.mT)

    def transpose(self) -> LinearOperator:
        return LowRank(self.right, self.weights, self.left, self.out_space, self.in_space)
