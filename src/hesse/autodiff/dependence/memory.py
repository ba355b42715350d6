"""What every element of memory depends on. Sets belong to storages, so that views and writes through them need no rule."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from hesse.autodiff.dependence.sets import Numbers, Sets, rows, sparse_zeros, stacked
from hesse.core.errors import UnsupportedError


@dataclass
class _Cell:
    """One storage.

    Attributes:
        storage: kept alive, so that its address stays its own.
        unit: bytes of an element.
        sets: of its elements; None where nothing has a derivative.
        varies: whether its values are others at another input.
    """

    storage: torch.UntypedStorage
    unit: int
    sets: Sets | None
    varies: bool


class Memory:
    """The storages that depend on the inputs.

    Args:
        inputs: number of input elements.
    """

    def __init__(self, inputs: int) -> None:
        self.inputs = inputs
        self._cells: dict[int, _Cell] = {}

    def _cell(self, tensor: Tensor) -> _Cell | None:
        if tensor.layout is not torch.strided:
            raise UnsupportedError("Sparsity is followed through strided tensors.", f"a tensor of layout {tensor.layout}",
                                   "convert it by to_dense(), or pass the pattern")  # fmt: skip
        return self._cells.get(tensor.untyped_storage()._cdata)

    def varies(self, tensor: Tensor) -> bool:
        """Whether a tensor's values are others at another input."""
        cell = self._cell(tensor)
        return cell is not None and cell.varies

    def sets(self, tensor: Tensor) -> Sets | None:
        """The sets of a tensor's elements in row-major order; None where it has no derivative."""
        cell = self._cell(tensor)
        if cell is None or cell.sets is None:
            return None
        sets = _in_units(cell, tensor.element_size())
        numbers = _places(tensor, sets.shape[0])
        return sets if numbers is None else rows(sets, numbers)

    def put(self, tensor: Tensor, sets: Sets | None, *, varies: bool) -> None:
        """Note what an op has written into a tensor."""
        cell = self._cell(tensor)
        storage = tensor.untyped_storage()
        size = storage.nbytes() // max(1, tensor.element_size())
        numbers = _places(tensor, size)
        if cell is None and (sets is not None or varies):
            cell = self._cells[storage._cdata] = _Cell(storage, tensor.element_size(), None, False)
        if cell is None:
            return
        if numbers is None:
            cell.unit, cell.sets, cell.varies = tensor.element_size(), sets, varies
            return
        cell.varies |= varies
        if cell.sets is None and sets is None:
            return
        empty = sparse_zeros(size, self.inputs)
        old = empty if cell.sets is None else _in_units(cell, tensor.element_size())
        new = sparse_zeros(tensor.numel(), self.inputs) if sets is None else sets
        taken = np.arange(size)
        taken[numbers] = size + np.arange(len(numbers))
        cell.unit, cell.sets = tensor.element_size(), rows(stacked(old, new), taken)

    def restart(self, inputs: int) -> None:
        """Go on with other inputs: nothing has a derivative by them yet, but what varies still does."""
        self.inputs = inputs
        for cell in self._cells.values():
            cell.sets = None


def _places(tensor: Tensor, size: int) -> Numbers | None:
    """Where in its storage each element of a tensor stands; None where the tensor is all of it, in order."""
    if tensor.is_contiguous() and tensor.numel() == size and not tensor.storage_offset():
        return None
    numbers = torch.arange(size).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    return numbers.flatten().numpy()


def _in_units(cell: _Cell, unit: int) -> Sets:
    """The sets of a storage whose elements are seen as larger or smaller ones: complex numbers as pairs of real ones."""
    assert cell.sets is not None
    if unit == cell.unit:
        return cell.sets
    count = cell.sets.shape[0]
    if unit < cell.unit:
        return rows(cell.sets, np.repeat(np.arange(count), cell.unit // unit))
    ratio = unit // cell.unit
    ends = np.arange(count // ratio + 1) * ratio
    pairs = (np.ones(count, bool), np.arange(count), ends)
    return scipy.sparse.csr_array(pairs, shape=(count // ratio, count)) @ cell.sets
