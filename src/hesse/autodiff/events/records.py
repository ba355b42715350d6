"""Facts of tensors, and records of the ops that ran."""

from __future__ import annotations

import cmath
import math
import re
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.autodiff.events.ops import checkable, tensors
from hesse.autodiff.source_lines import Place, Spot, place_of

__all__ = ["Label", "Log", "Record", "Status", "TensorFacts", "all_finite", "checkable", "dense", "entries", "facts", "tensors"]

Status = Literal["fine", "offends", "meant", "unfilled", "outside"]
"""Of what an op left: finite, part of an event, infinities put there on purpose, memory that nobody has filled; or a tensor
from outside that was not looked at."""

Brief = tuple[Any, "Spot | Place", tuple[int, ...] | list[int], Any, Any, bool]
"""What is noted of an op that left finite numbers, of whom a `Record` is made when somebody asks: the op (or "input"), where it
ran, the numbers of the ops that made its inputs, shape and type of its first output, and whether it ran in an optimizer."""

Label = Literal["data", "forward", "backward", "double backward", "optimizer"]

_KEPT = 10_000


@dataclass(frozen=True)
class TensorFacts:
    """What a tensor was like at one moment.

    Attributes:
        shape, dtype, device: as of the tensor.
        low, high: range of its finite entries (of real and imaginary parts); None without such entries, or not looked at.
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
    stored = dense(value).detach() if value.is_complex() else held
    nans = torch.isnan(stored)
    infs = int((torch.isinf(stored) & ~nans).sum())  # a complex number may be both
    rest = held[torch.isfinite(held)]
    bounds = torch.stack(torch.aminmax(rest)).tolist() if rest.numel() else (None, None)
    return TensorFacts(shape, value.dtype, value.device, *bounds, nans=int(nans.sum()), infs=infs)


def all_finite(value: Tensor) -> bool:
    """Whether a checkable tensor has only finite entries.

    A finite sum has finite terms; a sum that is not may have overflowed, so then the extremes are looked at.

    Cost: one sum; a second reduction where it is not finite.
    """
    held = value if value.layout is torch.strided and value.element_size() > 1 else entries(value)
    total = torch.sum(held).item()
    if math.isfinite(total) if isinstance(total, float) else cmath.isfinite(total):
        return True
    held = entries(value)
    return not held.numel() or all(map(math.isfinite, torch.stack(torch.aminmax(held)).tolist()))


class Record:
    """One op that ran: its name, place and outputs, and what it was given, by the numbers of the ops that made that.

    Args:
        number: the how-manieth op it was.
        brief: see `Brief`.
        status: what it left in memory.

    Attributes:
        func: the op itself, or "input" for a tensor that came from outside.
        parents: the numbers of the ops that made its inputs.
        shape, dtype: of its first floating-point output.
        updating: it ran in an optimizer's step.
        node: the name of the autograd node that ran it ("SqrtBackward0"); empty outside of backward passes, or where unknown.
        outputs: facts of its floating-point outputs; empty where only their finiteness was looked at.
        causes: the numbers of the parents that it has its NaN or infinity from; empty for a cause and for what is finite.
        origin: the number of the first cause.
        kind: what it left: "nan", "inf" or "overflow"; None where it is finite, or -inf that is meant.
        read: whether an op with floating-point outputs has read what it left.
    """

    __slots__ = (
        "_where", "causes", "dtype", "func", "kind", "node", "number", "origin", "outputs", "parents", "read", "shape",
        "status", "updating",
    )  # fmt: skip

    def __init__(self, number: int, brief: Brief, status: Status) -> None:
        self.number, self.status = number, status
        self.func, self._where, parents, self.shape, self.dtype, self.updating = brief
        self.parents = tuple(parents)
        self.outputs: tuple[TensorFacts, ...] = ()
        self.causes: tuple[int, ...] = ()
        self.origin, self.read, self.node = number, False, ""
        self.kind: Literal["nan", "inf", "overflow"] | None = None

    @property
    def place(self) -> Place:
        """Phase, line, stack and module."""
        return place_of(self._where)

    @property
    def offends(self) -> bool:
        """Whether an event was made of it."""
        return self.status == "offends"

    @property
    def op(self) -> str:
        """The op's name ("aten.log.default"), or "input"."""
        return str(self.func)

    @property
    def phase(self) -> Label:
        """When it ran; ops of a checkpoint's second run count as forward."""
        if self.func == "input":
            return "data"
        if self.updating:
            return "optimizer"
        return "forward" if not self.place.order else "backward" if self.place.order == 1 else "double backward"

    @property
    def title(self) -> str:
        """The op and its phase; for an op of a backward pass, also the operation whose derivative it is a part of ("backward of
        sqrt (SqrtBackward0: aten.div.Tensor)")."""
        name = forward_name(self.node)
        if not name or self.phase not in ("backward", "double backward"):
            return f"{self.op} ({self.phase})"
        return f"{self.phase} of {name} ({self.node}: {self.op})"

    def lines(self) -> list[str]:
        """What a drawing says of it: op, outputs, line."""
        known = [str(output) for output in self.outputs]
        if not known and self.shape is not None:
            known = [f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"]
        return [self.title if self.node else self.op, *known, *([] if self.place.source is None else [str(self.place.source)])]

    def __str__(self) -> str:
        where = "" if self.place.source is None else f" at {self.place.source}"
        return f"{self.title}{where}"


def forward_name(node: str) -> str:
    """The operation that an autograd node differentiates, as PyTorch's own are called ("LogSoftmaxBackward0": "log_softmax").

    Args:
        node: the node's name; a custom function's is "NameBackward", and its operation "Name".

    Returns:
        The name; empty for nodes that differentiate nothing (`AccumulateGrad`).
    """
    name, found, generated = node.rpartition("::")[2].rpartition("Backward")
    if not found or not generated.isdigit():
        return name
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z0-9])(?=[A-Z][a-z])", "_", name).lower()


class Log:
    """The latest ops, and the records of the first that left NaN or infinity."""

    def __init__(self) -> None:
        self._latest: deque[Brief | Record] = deque(maxlen=_KEPT)
        self._bad: dict[int, Record] = {}
        self._next = 0

    def note(self, brief: Brief) -> int:
        """Note an op that just ran; its number."""
        self._latest.append(brief)
        self._next += 1
        return self._next - 1

    def new(self, brief: Brief, status: Status) -> Record:
        """A record of an op that just ran."""
        record = Record(self._next, brief, status)
        self.note(brief)
        self._latest[-1] = record
        return record

    def keep(self, record: Record) -> None:
        """Keep a record of NaN or infinity, however many ops follow."""
        if len(self._bad) < _KEPT:
            self._bad[record.number] = record

    def get(self, number: int) -> Record | None:
        """The record of this number, while it is kept."""
        index = number - self._next + len(self._latest)
        if number in self._bad or not 0 <= index < len(self._latest):
            return self._bad.get(number)
        found = self._latest[index]
        if not isinstance(found, Record):
            found = self._latest[index] = Record(number, found, "fine" if found[0] != "input" else "outside")
        return found

    def many(self, numbers: tuple[int, ...]) -> list[Record]:
        """The records of these numbers that are still kept."""
        return [record for number in numbers if (record := self.get(number)) is not None]

    @property
    def bad(self) -> list[Record]:
        """The kept records of NaN and infinity, the first first."""
        return list(self._bad.values())


def dense(value: Tensor) -> Tensor:
    """The tensor that holds the entries of a sparse tensor; a dense one as it is."""
    if value.layout is torch.strided:
        return value
    return value._values() if value.layout is torch.sparse_coo else value.values()


def entries(value: Tensor) -> Tensor:
    """The stored entries of a checkable tensor as a dense real tensor that PyTorch can reduce."""
    value = dense(value).detach()
    value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    return value.float() if value.element_size() == 1 else value
