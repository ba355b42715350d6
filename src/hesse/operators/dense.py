"""An operator given by its matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator, Tag, flat_space


class Dense(LinearOperator):
    """The operator with a given matrix ``[out, in]``.

    Args:
        matrix: ``[out, in]``.
        in_space, out_space: by default bare vectors of the matrix's dtype and device.
        tags: what is known of it; not checked.
    """

    def __init__(
        self,
        matrix: Tensor,
        in_space: Space | None = None,
        out_space: Space | None = None,
        tags: frozenset[Tag] = frozenset(),
    ) -> None:
        if matrix.ndim != 2:
            raise StructureError("Dense needs a matrix.", f"a tensor of shape {tuple(matrix.shape)}", "pass [out, in]")
        self.in_space = flat_space(matrix.shape[1], matrix.dtype, matrix.device) if in_space is None else in_space
        self.out_space = flat_space(matrix.shape[0], matrix.dtype, matrix.device) if out_space is None else out_space
        if tuple(matrix.shape) != self.shape:
            raise StructureError(
                "The matrix does not fit the spaces.",
                f"{tuple(matrix.shape)} for {self.shape}",
                "pass a matrix of shape [out_space.dim, in_space.dim]",
            )
        if self.in_space.dtype.is_complex and not matrix.dtype.is_complex:
            matrix = matrix.to(torch.promote_types(matrix.dtype, self.in_space.dtype))
        self.matrix, self.tags = matrix, tags

    def mv(self, v: Tree) -> Tree:
        return self.out_space.unravel(self.matrix @ self.in_space.ravel(v).to(self.matrix.dtype))

    def mm(self, V: Tree) -> Tree:
        return self.out_space.unravel(self.in_space.ravel(V, 1).to(self.matrix.dtype) @ self.matrix.mT)

    def transpose(self) -> LinearOperator:
        return Dense(self.matrix.mT, self.out_space, self.in_space, self.tags)
