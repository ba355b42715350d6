"""What a NaN or an infinity comes from, and whether it is told: a cause, passed on, or meant."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from hesse.autodiff.events.memory import Memory
from hesse.autodiff.events.nonfinite import NonFiniteEvent
from hesse.autodiff.events.ops import Knowledge
from hesse.autodiff.events.records import Log, Record, TensorFacts, entries, facts
from hesse.autodiff.source_lines import Place, SourceMap, Spot

_KEPT = 8

Read = list[tuple[Tensor, int]]
"""The tensors that an op reads, each with the address of its storage."""

Call = tuple[Any, Knowledge, "Spot | Place", tuple[Any, ...]]
"""An op's call: the op, what is known of it, where it ran, and its positional arguments."""


class Judge:
    """Decides on single values, and remembers what it decided.

    Args:
        hook: called with a `NonFiniteEvent` for causes and for every value that they spoil.
        keep: copy the inputs of the first causes, for `NonFiniteEvent.save`.

    Attributes:
        log: what ran.
        memory: which op made what a storage holds.
        places: where ops come from; its `module` is the owner's to set.
        updating: set by the owner while an optimizer's step runs.
        closure: set by the owner: that step calls a closure, whose ops are none of the optimizer's.
        passed: a backward pass has begun.
    """

    def __init__(self, hook: Callable[[NonFiniteEvent], Any], *, keep: bool = False) -> None:
        self.hook, self._to_keep = hook, _KEPT if keep else 0
        self.places, self.memory, self.log = SourceMap(stacks=True), Memory(), Log()
        self.updating = self.closure = self.passed = False

    def offending(
        self, call: Call, whole: Record, read: Read, before: dict[int, TensorFacts], value: Tensor, auxiliary: bool
    ) -> None:
        """Find what an op has its NaN or infinity from, and tell it.

        Args:
            call: the op's call.
            whole: the record of the op.
            read: what it read.
            before: facts of those among these that it has written into since, by `id`.
            value: the output that is not finite.
            auxiliary: the output is of the op's own use, and -inf in it is meant.
        """
        func, known, _, args = call
        inputs, causes, masks, statuses = [], [], [], set[str]()
        for given, key in read:
            seen = before.get(id(given)) or facts(given)
            inputs.append(seen)
            if not seen.finite:
                makers = self._makers(given, key, seen)
                causes += [maker for maker in makers if maker.offends]
                masks += [maker for maker in makers if maker.status == "meant"]
                statuses |= {"told" if maker.offends and maker.kind else maker.status for maker in makers}
        place, found = self.places.place(), facts(value)
        meant = not causes and not found.nans
        meant = meant and (known.meant or "meant" in statuses or (auxiliary and only_negative(value)))
        brief = func, place, whole.parents, value.shape, value.dtype, self._in_update(place)
        record = self.log.new(brief, "meant" if meant else "offends")
        node = torch._C._current_autograd_node()
        record.node, record.outputs = "" if node is None else node.name(), (found,)
        record.causes = tuple(dict.fromkeys(cause.number for cause in causes))
        record.origin = min((cause.origin for cause in causes), default=record.number)
        self.log.keep(record)
        self.memory.put(value, record)
        if meant:  # an infinite loss has its cause where -inf turned into inf, else where -inf was put
            record.kind = None if only_negative(value) else "inf"
            record.origin = min((mask.origin for mask in masks if mask.kind == record.kind), default=record.number)
        else:
            finite = all(seen.finite for seen in inputs)
            record.kind = "nan" if found.nans else "overflow" if finite and not known.has_pole(args) else "inf"
            self._tell(record, value, found, tuple(inputs), read if not before else [], "told" not in statuses)

    def _in_update(self, place: Place) -> bool:
        """Whether an op belongs to an optimizer's step, or to one that the user wrote (after the backward pass, unrecorded)."""
        by_hand = not place.order and not torch.is_grad_enabled()
        return (self.updating and (by_hand or not self.closure)) or (self.passed and by_hand)

    def _makers(self, value: Tensor, key: int, seen: TensorFacts) -> list[Record]:
        """The ops that left what is not finite in a tensor."""
        doubted = self.memory.doubt.get(key, [])
        found = [record for record in doubted if record.offends]
        found += [] if seen.nans else [record for record in doubted if record.status == "meant"]
        if found:
            return found
        for record in doubted:
            if record.status == "unfilled":
                record.status, record.outputs = "offends", (seen,)
                self.log.keep(record)
                return [record]
        return [self.judge(key, value, seen)]

    def judge(self, key: int, value: Tensor, seen: TensorFacts) -> Record:
        """Tell a tensor from outside that is not finite, unless it looks like a mask or a bound.

        Args:
            key: the address of its storage.
            value: the tensor.
            seen: its facts.

        Returns:
            The record of its first use.
        """
        number = self.memory.strangers.get(key)
        record = None if number is None else self.log.get(number)
        if record is None:
            record = self.log.new(("input", self.places.place(), (), value.shape, value.dtype, False), "outside")
        record.outputs = (seen,)
        meant = not seen.nans and (not value.ndim or only_negative(value))
        record.status = "meant" if meant else "offends"
        self.memory.seen(key, record)
        self.log.keep(record)
        if not meant:
            record.kind = "nan" if seen.nans else "inf"
            self._tell(record, value, seen, (), [], True)
        return record

    def unwatched(self, name: str, value: Tensor, given: list[Tensor]) -> None:
        """Tell what a computation left that nobody watched, in a tensor that was finite before.

        Args:
            name: what to call the computation.
            value: the tensor.
            given: what it was given, finite too.
        """
        found, place = facts(value), self.places.place()
        record = self.log.new((name, place, (), value.shape, value.dtype, self.updating), "offends")
        record.kind, record.outputs = "nan" if found.nans else "overflow", (found,)
        self.log.keep(record)
        self.memory.put(value, record)
        self._tell(record, value, found, tuple(map(facts, given)), [], True)

    def _tell(
        self, record: Record, value: Tensor, found: TensorFacts, inputs: tuple[TensorFacts, ...], given: Read, origin: bool
    ) -> None:
        kept: tuple[Tensor, ...] = ()
        value = value.detach()
        if self._to_keep and origin:
            self._to_keep -= 1
            kept, value = tuple(tensor.detach().clone() for tensor, _ in given), value.clone()
        place, kind = record.place, record.kind or "nan"
        event = NonFiniteEvent(
            record.op, kind, record.phase, place.source, place.stack, place.module, place.region, origin, found, inputs,
            value, kept, record, self.log,
        )  # fmt: skip
        self.hook(event)


def only_negative(value: Tensor) -> bool:
    """Whether the infinities of a tensor are negative, as in logarithms of probabilities and in masks."""
    return not bool(torch.isposinf(entries(value)).any())


def unseen() -> AbstractContextManager[Any]:
    """Hide what checks compute from other dispatch modes (a tracer, a counter of operations)."""
    return _disable_current_modes() if torch._C._len_torch_dispatch_stack() else nullcontext()
