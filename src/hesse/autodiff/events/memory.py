"""Which op made what a storage holds now, and which of the ops that wrote into it may have left something non-finite."""

from __future__ import annotations

import torch
from torch import Tensor, UntypedStorage

from hesse.autodiff.events.records import Record, dense

_SWEEP = 4096


class Memory:
    """The last writer of each storage, and the writers in doubt.

    A storage is told by its address, which a weak reference keeps from being used again; `close` lets all of them go.

    Attributes:
        latest: the record of the last op that wrote into a storage, by its address.
        doubt: the records that may have left something non-finite there, in order; a storage that is known and not among these
            holds finite entries.
    """

    def __init__(self) -> None:
        self.latest: dict[int, Record] = {}
        self.doubt: dict[int, list[Record]] = {}
        self._sweep_at = _SWEEP

    def put(self, value: Tensor, record: Record) -> None:
        """Note that an op wrote a tensor. A write into a part of a storage takes nothing back that was said of the rest."""
        value = value if value.layout is torch.strided else dense(value)
        storage = value.untyped_storage()
        key = storage._cdata
        if key not in self.latest:
            storage._weak_ref()
            if len(self.latest) > self._sweep_at:
                self._sweep()
        self.latest[key] = record
        fine = record.status == "fine"
        if fine and key not in self.doubt:
            return
        doubted = self.doubt.get(key, [])
        if value.numel() * value.element_size() >= storage.nbytes():
            for replaced in doubted:
                replaced.read = True
            doubted = []
        if fine and not doubted:
            del self.doubt[key]
        elif not fine and record not in doubted:
            self.doubt[key] = [*doubted, record]

    def _sweep(self) -> None:
        for key in [key for key in self.latest if UntypedStorage._expired(key)]:
            UntypedStorage._free_weak_ref(key)
            self.doubt.pop(key, None)
            del self.latest[key]
        self._sweep_at = _SWEEP + 2 * len(self.latest)

    def alive(self, key: int) -> bool:
        """Whether some tensor still holds this storage."""
        return not UntypedStorage._expired(key)

    def close(self) -> None:
        """Forget everything."""
        for key in self.latest:
            UntypedStorage._free_weak_ref(key)
        self.latest.clear()
        self.doubt.clear()


def address(value: Tensor) -> int:
    """What tells the storage of a checkable tensor from others."""
    return (value if value.layout is torch.strided else dense(value)).untyped_storage()._cdata
