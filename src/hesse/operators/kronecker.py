"""A Kronecker product of matrices, acting on one weight-shaped leaf."""

from __future__ import annotations

from torch import Tensor

from hesse.core.errors import StructureError
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator, Tag


class Kronecker(LinearOperator):
    """``left (x) right``: maps a matrix ``X`` ``[q, s]`` to ``left X right^T`` ``[p, r]``.

    The flat vector of ``X`` is in row-major order, for which the matrix of this map is ``torch.kron(left, right)``.

    Args:
        left: ``[p, q]``.
        right: ``[r, s]``.
        in_space, out_space: spaces of dimension ``q s`` and ``p r``, of whatever shapes; bare matrices by default.
        tags: SYMMETRIC, PSD, ... where both factors are known to be; not checked.
    """

    def __init__(
        self,
        left: Tensor,
        right: Tensor,
        in_space: Space | None = None,
        out_space: Space | None = None,
        tags: frozenset[Tag] = frozenset(),
    ) -> None:
        if left.ndim != 2 or right.ndim != 2:
            found = f"shapes {tuple(left.shape)} and {tuple(right.shape)}"
            raise StructureError("Kronecker needs two matrices.", found, "pass [p, q] and [r, s]")
        self.left, self.right, self.tags = left, right, tags
        self.in_space = Space.of(left.new_empty(left.shape[1], right.shape[1])) if in_space is None else in_space
        self.out_space = Space.of(left.new_empty(left.shape[0], right.shape[0])) if out_space is None else out_space
        expected = (left.shape[0] * right.shape[0], left.shape[1] * right.shape[1])
        if expected != self.shape:
            raise StructureError(
                "The factors do not fit the spaces.",
                f"{expected} for {self.shape}",
                "pass spaces of dimension q s and p r for factors [p, q] and [r, s]",
            )

    def _apply(self, flat: Tensor) -> Tensor:
        X = flat.reshape(*flat.shape[:-1], self.left.shape[1], self.right.shape[1])
        return (self.left @ X @ self.right.mT).flatten(-2)

    def mv(self, v: Tree) -> Tree:
        return self.out_space.unravel(self._apply(self.in_space.ravel(v)))

    def mm(self, V: Tree) -> Tree:
        return self.out_space.unravel(self._apply(self.in_space.ravel(V, 1)))

    def transpose(self) -> LinearOperator:
        return Kronecker(self.left.mT, self.right.mT, self.out_space, self.in_space, self.tags)
