"""Facts of tensors and records of the ops that made them, kept while the tensors live (and for the latest ops)."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from hesse.autodiff.source_lines import Place

Status = Literal["fine", "offends", "meant", "unfilled"]
"""Of what a storage holds: nothing seen, part of an event, infinities put there on purpose, memory that nobody has filled."""

_KEPT = 10_000
_SWEEP = 1024


@dataclass(frozen=True)
class TensorFacts:
    """What a tensor was like at one moment.

    Attributes:
        shape, dtype, device: as of the tensor.
        low, high: range of its finite entries (of real and imaginary parts); None without such entries.
        nans, infs: how many of its entries are NaN, and how many infinite.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    low: float | None = None
    high: float | None = None
    nans: int = 0
    infs: int = 0

    @property
    def finite(self) -> bool:
        """Whether every entry is finite."""
        return not (self.nans or self.infs)

    def __str__(self) -> str:
        between = "" if self.low is None or self.high is None else f" in [{self.low:.4g}, {self.high:.4g}]"
        wrong = [f"{count} {name}" for count, name in ((self.nans, "nan"), (self.infs, "inf")) if count]
        found = f" with {', '.join(wrong)} of {math.prod(self.shape)}" if wrong else ""
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}{between}{found}"


def facts(value: Tensor) -> TensorFacts:
    """The facts of a checkable tensor.

    Cost: one reduction; four where something is not finite.
    """
    held = entries(value)
    shape = tuple(value.shape)
    if not held.numel():
        return TensorFacts(shape, value.dtype, value.device)
    low, high = torch.stack(torch.aminmax(held)).tolist()
    if math.isfinite(low) and math.isfinite(high):
        return TensorFacts(shape, value.dtype, value.device, low, high)
    stored = _dense(value).detach() if value.is_complex() else held
    nans = torch.isnan(stored)
    infs = int((torch.isinf(stored) & ~nans).sum())  # a complex number may be both
    rest = held[torch.isfinite(held)]
    bounds = torch.stack(torch.aminmax(rest)).tolist() if rest.numel() else (None, None)
    return TensorFacts(shape, value.dtype, value.device, *bounds, nans=int(nans.sum()), infs=infs)


class Record:
    """One op that ran: its name, place and outputs. Records of the ops before it are held weakly.

    Attributes:
        op: the op's name, or "input" for a tensor that came from outside.
        place: phase, line and stack.
        outputs: facts of its floating-point outputs.
        offends: an event was made of it.
    """

    __slots__ = ("__weakref__", "_parents", "offends", "op", "outputs", "place")

    def __init__(
        self, op: str, place: Place, outputs: tuple[TensorFacts, ...], parents: Iterable[Record], offends: bool
    ) -> None:
        self.op, self.place, self.outputs, self.offends = op, place, outputs, offends
        self._parents = tuple(weakref.ref(parent) for parent in dict.fromkeys(parents))

    @property
    def parents(self) -> list[Record]:
        """The ops that made its inputs, as far as they are still known."""
        return [parent for reference in self._parents if (parent := reference()) is not None]

    def __str__(self) -> str:
        where = "" if self.place.source is None else f" at {self.place.source}"
        return f"{self.op} ({self.place.phase}){where}"


class Made:
    """Which record made what a storage holds now, and what is known of it.

    A storage is told by its address, which a weak reference keeps from being used again.
    """

    def __init__(self) -> None:
        self._of: dict[int, tuple[StorageWeakRef, Record, Status]] = {}
        self._latest: deque[Record] = deque(maxlen=_KEPT)
        self._sweep_at = _SWEEP

    def put(self, value: Tensor, record: Record, status: Status) -> None:
        """Note what wrote a tensor. A write into a part of a storage takes nothing back that was said of the rest."""
        storage = _storage(value)
        if not self._latest or self._latest[-1] is not record:
            self._latest.append(record)
        if status == "fine" and value.numel() * value.element_size() < storage.nbytes():
            status = self.get(value)[1] or status
        self._of[storage._cdata] = (StorageWeakRef(storage), record, status)
        if len(self._of) > self._sweep_at:
            self._of = {key: entry for key, entry in self._of.items() if not entry[0].expired()}
            self._sweep_at = _SWEEP + 2 * len(self._of)

    def get(self, value: Tensor) -> tuple[Record | None, Status | None]:
        """The record and status of a tensor's storage; ``(None, None)`` of one never met."""
        entry = self._of.get(_storage(value)._cdata)
        return (None, None) if entry is None else entry[1:]


def _dense(value: Tensor) -> Tensor:
    """The tensor that holds the entries of a sparse tensor; a dense one as it is."""
    if value.layout is torch.strided:
        return value
    return value._values() if value.layout is torch.sparse_coo else value.values()


def _storage(value: Tensor) -> torch.UntypedStorage:
    return _dense(value).untyped_storage()


def checkable(value: Any) -> bool:
    """Whether a value is a tensor that holds floating-point entries: no empty, nested or meta tensor, no subclass."""
    if type(value) not in (Tensor, torch.nn.Parameter) or value.is_meta or value.is_nested or value._is_zerotensor():
        return False
    known = value.layout in (torch.strided, torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)
    return known and (value.is_floating_point() or value.is_complex()) and value.numel() > 0


def entries(value: Tensor) -> Tensor:
    """The stored entries of a checkable tensor as a dense real tensor that PyTorch can reduce."""
    value = _dense(value).detach()
    value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    return value.float() if value.element_size() == 1 else value


def tensors(values: Any) -> Iterator[Tensor]:
    """The tensors among an op's arguments or outputs, in lists of them too."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors(value)
