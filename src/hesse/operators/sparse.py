"""An operator given by its entries that may differ from zero."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator, Tag, flat_space


class Sparse(LinearOperator):
    """The operator with given entries; differentiable by them, and usable under `vmap`, as `torch.sparse` is not.

    Args:
        indices: ``[2, nnz]``, int64: row and column of each entry, none twice.
        values: ``[nnz]``.
        in_space, out_space: spaces, or numbers of columns and rows for bare vectors.
        tags: what is known of it; not checked.

    Raises:
        StructureError: indices outside of the spaces, or not as many as values.
    """

    def __init__(
        self,
        indices: Tensor,
        values: Tensor,
        in_space: Space | int,
        out_space: Space | int,
        tags: frozenset[Tag] = frozenset(),
    ) -> None:
        spaces = [flat_space(s, values.dtype, values.device) if isinstance(s, int) else s for s in (in_space, out_space)]
        self.in_space, self.out_space = spaces
        if tuple(indices.shape) != (2, *values.shape) or values.ndim != 1:
            raise StructureError(
                "Sparse needs the places of entries, and as many values.",
                f"shapes {tuple(indices.shape)} and {tuple(values.shape)}",
                "pass [2, nnz] and [nnz]",
            )
        for line, size, name in zip(indices, self.shape, ("row", "column"), strict=True):
            if len(line) and (int(line.min()) < 0 or int(line.max()) >= size):
                raise StructureError(
                    "The entries of Sparse lie inside of the matrix.",
                    f"{name}s from {int(line.min())} to {int(line.max())}, of {size}",
                    "pass the spaces that they belong to",
                )
        self.indices, self.values, self.tags = indices, values, tags

    def mv(self, v: Tree) -> Tree:
        flat = self.in_space.ravel(v).to(torch.promote_types(self.values.dtype, self.in_space.dtype))
        rows, columns = self.indices
        return self.out_space.unravel(
            flat.new_zeros(self.shape[0]).index_add(0, rows, self.values * flat.index_select(0, columns))
        )

    def mm(self, V: Tree) -> Tree:
        flat = self.in_space.ravel(V, 1).to(torch.promote_types(self.values.dtype, self.in_space.dtype))
        rows, columns = self.indices
        products = self.values * flat.index_select(1, columns)
        return self.out_space.unravel(flat.new_zeros(len(flat), self.shape[0]).index_add(1, rows, products))

    def transpose(self) -> LinearOperator:
        return Sparse(self.indices.flip(0), self.values, self.out_space, self.in_space, self.tags)
