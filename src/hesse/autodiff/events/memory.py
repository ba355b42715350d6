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
        latest: the number of the last op that wrote into a storage, by its address.
        doubt: the records that may have left something non-finite there, in order.
        strangers: storages from outside that nobody has looked at, with the number of their first use. A storage that is known
            and neither here nor in `doubt` holds finite entries.
        inputs: the same numbers of all storages from outside, also after they were looked at.
    """

    def __init__(self) -> None:
        self.latest: dict[int, int] = {}
        self.doubt: dict[int, list[Record]] = {}
        self.strangers: dict[int, int] = {}
        self.inputs: dict[int, int] = {}
        self._sweep_at = _SWEEP

    def hold(self, value: Tensor, number: int) -> int:
        """Note that an op wrote a tensor, without asking what it wrote.

        Args:
            value: strided.
            number: the op's.

        Returns:
            The address of its storage.
        """
        storage = value.untyped_storage()
        key = storage._cdata
        if key not in self.latest:
            storage._weak_ref()
            if len(self.latest) > self._sweep_at:
                self._sweep()
        self.latest[key] = number
        return key

    def meet(self, value: Tensor, number: int) -> None:
        """Note a tensor from outside, where it is first used."""
        key = self.hold(dense(value), number)
        self.strangers[key] = self.inputs[key] = number

    def put(self, value: Tensor, record: Record) -> None:
        """Note what an op wrote. A write into a part of a storage takes nothing back that was said of the rest."""
        value = dense(value)
        key = self.hold(value, record.number)
        if record.status == "fine" and key not in self.doubt and key not in self.strangers:
            return
        if covers(value):
            self.strangers.pop(key, None)
            for replaced in self.doubt.pop(key, ()):
                replaced.read = True
        doubted = self.doubt.get(key, [])
        if record.status != "fine" and record not in doubted:
            self.doubt[key] = [*doubted, record]

    def seen(self, key: int, record: Record) -> None:
        """Note that a stranger was looked at, and found not finite."""
        self.strangers.pop(key, None)
        self.doubt[key] = [*self.doubt.get(key, []), record]

    def changed(self, key: int) -> bool:
        """Whether some op wrote into a storage from outside."""
        return key in self.latest and self.latest[key] != self.inputs.get(key)

    def _sweep(self) -> None:
        for key in [key for key in self.latest if UntypedStorage._expired(key)]:
            UntypedStorage._free_weak_ref(key)
            del self.latest[key]
            for about in (self.doubt, self.strangers, self.inputs):
                about.pop(key, None)
        self._sweep_at = _SWEEP + 2 * len(self.latest)

    def alive(self, key: int) -> bool:
        """Whether some tensor still holds this storage."""
        return not UntypedStorage._expired(key)

    def close(self) -> None:
        """Forget everything."""
        for key in self.latest:
            UntypedStorage._free_weak_ref(key)
        for about in (self.latest, self.doubt, self.strangers, self.inputs):
            about.clear()


def address(value: Tensor) -> int:
    """What tells the storage of a checkable tensor from others."""
    return (value if value.layout is torch.strided else dense(value)).untyped_storage()._cdata


def covers(value: Tensor) -> bool:
    """Whether a tensor fills its storage."""
    value = dense(value)
    return value.numel() * value.element_size() >= value.untyped_storage().nbytes()
