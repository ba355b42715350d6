"""What every element of memory depends on. Sets belong to storages, so that views and writes through them need no rule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.autodiff.dependence.estimate import Tally
from hesse.autodiff.dependence.sets.base import Sets
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
        none: no sets at all, in the representation that those of the inputs have.
        tally: counts all sets.
    """

    def __init__(self, none: Sets, tally: Tally | None = None) -> None:
        self.none, self._tally = none, tally
        self._cells: dict[int, _Cell] = {}

    def _cell(self, tensor: Tensor) -> _Cell | None:
        return self._cells.get(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else None

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
        if _is_whole(tensor, sets.count):
            return sets
        grown = cell.storage.nbytes() // tensor.element_size() - sets.count
        sets = sets.then(sets.empty(grown)) if grown > 0 else sets  # `resize_` has made room since
        return sets.strided(tensor.shape, tensor.stride(), int(tensor.storage_offset()))

    def put(self, tensor: Tensor, sets: Sets | None, *, varies: bool) -> None:
        """Note what an op has written into a tensor.

        Raises:
            UnsupportedError: a sparse tensor whose values depend on the inputs; those that do not are constants like any other.
        """
        if tensor.layout is not torch.strided:
            if sets is None and not varies:
                return
            raise UnsupportedError("Sparsity is followed through strided tensors.", f"a tensor of layout {tensor.layout}",
                                   "convert it by to_dense(), or pass the pattern")  # fmt: skip
        cell = self._cell(tensor)
        storage, unit = tensor.untyped_storage(), tensor.element_size()
        if cell is None and (sets is not None or varies):
            cell = self._cells[storage._cdata] = _Cell(storage, unit, None, False)
        if cell is None:
            return
        size = storage.nbytes() // max(1, unit)
        if _is_whole(tensor, size):
            cell.unit, cell.sets, cell.varies = unit, sets, varies
            self._count(sets)
            return
        cell.varies |= varies
        if cell.sets is None and sets is None:
            return
        if cell.sets is None:
            assert sets is not None
            old = sets.empty(size)
        else:
            old = _in_units(cell, unit)
            old = old if old.count >= size else old.then(old.empty(size - old.count))
        cell.unit, cell.sets = unit, old.written(sets, tensor.shape, tensor.stride(), int(tensor.storage_offset()))
        self._count(cell.sets)

    def _count(self, sets: Sets | None) -> None:
        if self._tally is not None:
            self._tally.add(sets)

    def note(self, tensor: Tensor) -> None:
        """Note that what was written into a tensor varies, and leave its sets."""
        storage = tensor.untyped_storage()
        cell = self._cells.setdefault(storage._cdata, _Cell(storage, tensor.element_size(), None, True))
        cell.varies = True

    def restart(self, none: Sets) -> None:
        """Go on with other inputs: nothing has a derivative by them yet, but what varies still does."""
        self.none = none
        for cell in self._cells.values():
            cell.sets = None


def _is_whole(tensor: Tensor, size: int) -> bool:
    """Whether a tensor is all of its memory, in order."""
    return tensor.is_contiguous() and tensor.numel() == size and not tensor.storage_offset()


def _in_units(cell: _Cell, unit: int) -> Sets:
    """The sets of a storage whose elements are seen as larger or smaller ones: complex numbers as pairs of real ones."""
    assert cell.sets is not None
    return cell.sets if unit == cell.unit else cell.sets.regrained(cell.unit, unit)
