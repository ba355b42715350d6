"""Which node made what a tensor holds now: tensors told apart by memory and layout, writes counted as new versions."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakTensorKeyDictionary

Maker = TypeVar("Maker")
Layout = tuple[Any, ...]
_PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)
_SWEEP = 1024


class _Memory(Generic[Maker]):
    """A storage: who wrote it last, how often it was written, and who made each view of it (and after which write)."""

    __slots__ = ("reference", "views", "writer", "writes")

    def __init__(self, reference: StorageWeakRef, writer: Maker) -> None:
        self.reference, self.writer, self.writes = reference, writer, 0
        self.views: dict[Layout, tuple[Maker, int]] = {}


class Makers(Generic[Maker]):
    """The makers of tensors, by storage and layout, so that the copies which autograd keeps of a tensor are that tensor.

    A write into a view makes a new version of the whole storage: whoever reads another view of it afterwards reads the
    writer's result. Nothing is kept alive: storages are told by address, which a weak reference keeps from being used again.
    Tensors without a storage of their own (sparse, nested, subclasses) are told by object.
    """

    def __init__(self) -> None:
        self._memories: dict[int, _Memory[Maker]] = {}
        self._others: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._sweep_at = _SWEEP

    def get(self, value: Tensor) -> Maker | None:
        """The maker of what a tensor holds now; None of memory never met."""
        if not _plain(value):
            return self._others.get(value)
        memory = self._memories.get(value.untyped_storage()._cdata)
        if memory is None:
            return None
        maker, writes = memory.views.get(_layout(value), (memory.writer, memory.writes))
        return maker if writes == memory.writes else memory.writer

    def put(self, value: Tensor, maker: Maker) -> None:
        """Note who made a tensor, be it in fresh memory or as a view of memory met before."""
        if not _plain(value):
            self._others[value] = maker
            return
        storage = value.untyped_storage()
        memory = self._memories.get(storage._cdata)
        if memory is None:
            memory = self._memories[storage._cdata] = _Memory(StorageWeakRef(storage), maker)
            self._sweep()
        memory.views[_layout(value)] = (maker, memory.writes)

    def write(self, value: Tensor, maker: Maker) -> None:
        """Note who wrote into a tensor."""
        self.put(value, maker)
        if _plain(value):
            memory = self._memories[value.untyped_storage()._cdata]
            memory.writes += 1
            memory.writer = maker
            memory.views = {layout: view for layout, view in memory.views.items() if view[1] == memory.writes}
            memory.views[_layout(value)] = (maker, memory.writes)

    def _sweep(self) -> None:
        if len(self._memories) > self._sweep_at:
            self._memories = {key: memory for key, memory in self._memories.items() if not memory.reference.expired()}
            self._sweep_at = _SWEEP + 2 * len(self._memories)


def _plain(value: Tensor) -> bool:
    """Whether a tensor has entries in a storage of its own."""
    if type(value) not in _PLAIN or value.layout is not torch.strided or value.is_nested:
        return False
    return not value._is_zerotensor()


def _layout(value: Tensor) -> Layout:
    return (value.storage_offset(), tuple(value.shape), value.stride(), value.dtype, value.is_conj(), value.is_neg())
