"""Entries as the matrix that is wanted: torch.sparse in its layouts, SciPy, dense, blocks for pairs of leaves, an operator."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any, Literal

import scipy.sparse
import torch
from torch import Tensor

from hesse.core.errors import StructureError, UnsupportedError
from hesse.core.memory import Budget, chunk_size, current_budget
from hesse.core.space import Space
from hesse.operators.base import Tag
from hesse.operators.sparse import Sparse
from hesse.sparse.assembled import compressed_matrix, coo_matrix
from hesse.sparse.blocks import block_places, found_block, leaf_blocks
from hesse.sparse.pattern import Pattern

Layout = Literal["coo", "csr", "csc", "bsr", "scipy", "dense", "blocks", "operator"]
LAYOUTS: tuple[Layout, ...] = ("coo", "csr", "csc", "bsr", "scipy", "dense", "blocks", "operator")
_SMALL = 2**20  # bytes that no budget is asked for, which takes 80 microseconds


class Arranger:
    """Puts entries into matrices.

    Index tensors are made once for each device; a result has copies of its own, since torch writes to them (transposing in
    place swaps the rows of a matrix's coordinates).

    Args:
        pattern: of the matrix.
        in_space, out_space: of its columns and rows.
        tags: of operators.
        block: sides of the blocks of "bsr"; without, the largest ones that the pattern fills completely.
        memory: budget of dense matrices, and of blocks that the pattern does not fill.

    Raises:
        StructureError: blocks whose sides do not divide the matrix.
    """

    def __init__(
        self,
        pattern: Pattern,
        in_space: Space,
        out_space: Space,
        tags: frozenset[Tag] = frozenset(),
        block: tuple[int, int] | None = None,
        memory: Budget | None = None,
    ) -> None:
        self.pattern, self.in_space, self.out_space, self.tags = pattern, in_space, out_space, tags
        self.memory = memory
        if block is not None and (min(block) < 1 or any(size % side for size, side in zip(pattern.shape, block, strict=True))):
            raise StructureError("Sides of blocks divide those of the matrix.", f"blocks {block} in {pattern.shape}",
                                 "pass divisors, or block=None")  # fmt: skip
        self._block, self._lock = block, threading.Lock()
        self._made: dict[tuple[str, torch.device], list[Tensor]] = {}
        self._leaves: tuple[Tensor, list[int], Tensor] | None = None

    def arrange(self, values: Tensor, layout: Layout) -> Any:
        """The matrix.

        Args:
            values: ``[nnz]``, in the order of the pattern.
            layout: "coo", "csr", "csc" and "bsr": torch.sparse; "scipy": a SciPy matrix in compressed rows; "dense": ``[rows,
                columns]``; "blocks": for each pair of leaves a sparse tensor ``[numel, numel]``, as a tree like the value of
                trees like x; "operator".

        Returns:
            The matrix, whose values are shared with `values` where the layout keeps their order. It is differentiable by them:
            "csr", "csc" and "bsr" once, "coo" and "blocks" twice, "dense" and "operator" in every way.

        Raises:
            StructureError: an unknown layout. MemoryBudgetError: a dense matrix, or its blocks, beyond the budget.
            UnsupportedError: "scipy" for values that require grad; forward mode or transforms that torch.sparse does not have;
            at the backward, one derivative more than the layout allows.

        Cost: no gradients; a copy of the indices, and a pass over the entries where the layout orders them anew.
        """
        shape, device = self.pattern.shape, values.device
        if layout == "coo":
            return coo_matrix(values, self._coordinates(device), shape)
        if layout in ("csr", "csc", "bsr"):
            return self._compressed(values, layout)
        if layout == "scipy":
            return self._scipy(values)
        if layout == "dense":
            self._require_room(shape[0] * shape[1], values)
            flat = self._once("dense", device, lambda: [torch.from_numpy(self.pattern.rows * shape[1] + self.pattern.indices)])
            return values.new_zeros(shape[0] * shape[1]).index_copy(0, flat[0], values).view(shape)
        if layout == "operator":
            return Sparse(self._coordinates(device), values, self.in_space, self.out_space, self.tags)
        if layout == "blocks":
            return self._blocks(values)
        raise StructureError(f"layout is one of {', '.join(map(repr, LAYOUTS))}.", repr(layout), "pass one of these")

    def _once(self, name: str, device: torch.device, make: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Index tensors on a device."""
        found = self._made.get((name, device))
        if found is None:
            with self._lock:
                found = self._made.setdefault((name, device), [tensor.to(device) for tensor in make()])
        return found

    def _coordinates(self, device: torch.device) -> Tensor:
        """``[2, nnz]``, not to be given away."""
        return self._once("coo", device, lambda: [self.pattern.coordinates])[0]

    def _require_room(self, count: int, values: Tensor) -> None:
        size = count * values.dtype.itemsize
        if size > _SMALL:
            chunk_size(1, 0, size, current_budget(self.memory, values.device), "a dense result")

    def _compressed(self, values: Tensor, layout: str) -> Tensor:
        return compressed_matrix(values, self._coordinates(values.device), lambda part: self._rows(part, layout), layout)

    def _rows(self, values: Tensor, layout: str) -> Tensor:
        """Compressed rows, columns, or rows of blocks."""
        pattern, shape, device = self.pattern, self.pattern.shape, values.device
        if layout == "csr":
            ends, places = self._once("csr", device, lambda: [torch.tensor(pattern.indptr), torch.tensor(pattern.indices)])
            return _quietly(torch.sparse_csr_tensor, ends.clone(), places.clone(), values, shape)
        if layout == "csc":
            ends, places, order = self._once("csc", device, lambda: [
                torch.tensor(array) for array in (pattern.T.indptr, pattern.T.indices, pattern.by_column)])  # fmt: skip
            return _quietly(torch.sparse_csc_tensor, ends.clone(), places.clone(), values.index_select(0, order), shape)
        if self._block is None:
            self._block = found_block(pattern)
        height, width = self._block
        ends, places, targets = self._once("bsr", device, lambda: block_places(pattern, height, width))
        self._require_room(len(places) * height * width, values)
        filled = values.new_zeros(len(places) * height * width).index_copy(0, targets, values)
        return _quietly(torch.sparse_bsr_tensor, ends.clone(), places.clone(), filled.view(-1, height, width), shape)

    def _scipy(self, values: Tensor) -> Any:
        if values.requires_grad:
            raise UnsupportedError("SciPy's matrices have no gradients.", "values that require grad",
                                   "call it under torch.no_grad(), or take layout='coo'")  # fmt: skip
        ones, data = self.pattern.ones, values.cpu()
        array = data.to(torch.float32).numpy() if data.dtype in (torch.bfloat16, torch.float16) else data.numpy()
        # SciPy's own methods write to index arrays (eliminate_zeros), so these are copies
        return scipy.sparse.csr_array((array, ones.indices.copy(), ones.indptr.copy()), shape=self.pattern.shape, copy=False)

    def _blocks(self, values: Tensor) -> Any:
        heights, widths = self.out_space.sizes, self.in_space.sizes
        with self._lock:
            self._leaves = self._leaves or leaf_blocks(self.pattern, heights, widths)
        order, counts, places = self._leaves
        order, places = self._once("blocks", values.device, lambda: [order, places])
        parts = zip(values.index_select(0, order).split(counts), places.split(counts, 1), strict=True)
        table = [self.in_space.rebuild([coo_matrix(part, where, (height, width))
                                        for width, (part, where) in zip(widths, parts, strict=False)])
                 for height in heights]  # fmt: skip
        return self.out_space.rebuild(table)


_beta_warned = threading.Lock()


def _quietly(make: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call a constructor of `torch.sparse` without checks; the first one of a process says that compressed rows are beta."""
    if _beta_warned.acquire(blocking=False):  # never released: contexts of warnings are not safe in threads
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make(*arguments, check_invariants=False)
    return make(*arguments, check_invariants=False)
