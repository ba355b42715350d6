"""Entries as the matrix that is wanted: torch.sparse in its layouts, SciPy, dense, blocks for pairs of leaves, an operator."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from hesse.core.errors import StructureError, UnsupportedError
from hesse.core.space import Space
from hesse.operators.base import Tag
from hesse.operators.sparse import Sparse
from hesse.sparse.pattern import Pattern

Layout = Literal["coo", "csr", "csc", "scipy", "dense", "blocks", "operator"]
LAYOUTS: tuple[Layout, ...] = ("coo", "csr", "csc", "scipy", "dense", "blocks", "operator")


class Arranger:
    """Puts entries into matrices; index tensors are made once.

    Args:
        pattern: of the matrix.
        in_space, out_space: of its columns and rows.
        tags: of operators.
    """

    def __init__(self, pattern: Pattern, in_space: Space, out_space: Space, tags: frozenset[Tag] = frozenset()) -> None:
        self.pattern, self.in_space, self.out_space, self.tags = pattern, in_space, out_space, tags
        self._rows, self._columns = torch.from_numpy(pattern.rows), torch.from_numpy(pattern.indices)

    def arrange(self, values: Tensor, layout: Layout) -> Any:
        """The matrix.

        Args:
            values: ``[nnz]``, in the order of the pattern.
            layout: "coo", "csr" and "csc": torch.sparse; "scipy": a SciPy matrix in compressed rows; "dense": ``[rows,
                columns]``; "blocks": for each pair of leaves a sparse tensor ``[numel, numel]``, as a tree like the value of
                trees like x; "operator".

        Raises:
            StructureError: an unknown layout. UnsupportedError: "scipy" for values that require grad.
        """
        shape, device = self.pattern.shape, values.device
        rows, columns = self._rows.to(device), self._columns.to(device)
        if layout == "coo":
            return torch.sparse_coo_tensor(
                torch.stack([rows, columns]), values, shape, is_coalesced=True, check_invariants=False
            )
        if layout in ("csr", "csc"):
            return self._compressed(values, layout)
        if layout == "scipy":
            if values.requires_grad:
                raise UnsupportedError("SciPy's matrices have no gradients.", "values that require grad",
                                       "call it under torch.no_grad(), or take layout='coo'")  # fmt: skip
            return scipy.sparse.csr_array((values.cpu().numpy(), self.pattern.indices, self.pattern.indptr), shape=shape)
        if layout == "dense":
            return values.new_zeros(shape).index_put((rows, columns), values)
        if layout == "operator":
            return Sparse(torch.stack([rows, columns]), values, self.in_space, self.out_space, self.tags)
        if layout == "blocks":
            return self._blocks(values, rows, columns)
        raise StructureError(f"layout is one of {', '.join(map(repr, LAYOUTS))}.", repr(layout), "pass one of these")

    def _compressed(self, values: Tensor, layout: str) -> Tensor:
        pattern, device = self.pattern, values.device
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            if layout == "csr":
                ends, places = torch.from_numpy(pattern.indptr).to(device), self._columns.to(device)
                return torch.sparse_csr_tensor(ends, places, values, pattern.shape, check_invariants=False)
            order = torch.from_numpy(np.argsort(pattern.indices, kind="stable")).to(device)
            ends, places = torch.from_numpy(pattern.T.indptr).to(device), self._rows.to(device)[order]
            return torch.sparse_csc_tensor(ends, places, values[order], pattern.shape, check_invariants=False)

    def _blocks(self, values: Tensor, rows: Tensor, columns: Tensor) -> Any:
        table, top = [], 0
        for height in self.out_space.sizes:
            line, left = [], 0
            for width in self.in_space.sizes:
                own = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
                places = torch.stack([rows[own] - top, columns[own] - left])
                line.append(
                    torch.sparse_coo_tensor(places, values[own], (height, width), is_coalesced=True, check_invariants=False)
                )
                left += width
            table.append(self.in_space.rebuild(line))
            top += height
        return self.out_space.rebuild(table)
