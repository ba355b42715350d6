"""Watch every op of a training step, forward and backward, for NaN and infinity."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import _disable_current_modes

from hesse.autodiff.dispatching import LightMode
from hesse.autodiff.events.memory import Memory, address
from hesse.autodiff.events.nonfinite import NonFiniteEvent
from hesse.autodiff.events.ops import NUMBERS, Knowledge, checkable, has_own_dispatch, knowledge, tensors
from hesse.autodiff.events.records import Log, Record, Status, TensorFacts, all_finite, entries, facts
from hesse.autodiff.source_lines import Place, SourceMap

__all__ = ["NonFiniteEvent", "Watch", "watching"]

_ALIASES = {"detach", "alias"}  # read nothing yet
_PASSING = Place(None, "backward", (), 1)  # of a backward op whose line nobody needs as long as it gives finite numbers
_KEPT = 8
_SCALER = "_amp_foreach_non_finite_check_and_unscale_"


_Call = tuple[Any, Knowledge, Place, tuple[Any, ...]]
"""An op's call: the op, what is known of it, its place and positional arguments."""


class Watch(LightMode):
    """Checks what every op returns or writes, and follows where NaN and infinity go.

    Args:
        hook: called with a `NonFiniteEvent` for causes and for every value that they spoil.
        ranges: take the range of every value, and check tensors from outside when they are first met; otherwise only sums are
            looked at, and tensors from outside once an op that read them gave something non-finite.
        keep: copy the inputs of the first causes, for `NonFiniteEvent.save`.

    Attributes:
        log: the records of the ops.
        memory: which op made what a storage holds.
        places: where ops come from; its `module` is the owner's to set.
        updating: set by the owner while an optimizer's step runs.
        on_root: called with a tensor whose gradient a backward pass is asked for.
        outside: the tensors from outside, held weakly, by the address of their storage.
        items: the offending records that Python read as numbers.
        skipped: the offending gradients that a `GradScaler` has seen.
        asleep: nothing is looked at.
        eager: set by the owner while PyTorch's compiler is kept from running.
    """

    def __init__(self, hook: Callable[[NonFiniteEvent], Any], *, ranges: bool = True, keep: bool = False) -> None:
        super().__init__()
        self.hook, self.ranges = hook, ranges
        self.places, self.memory, self.log = SourceMap(stacks=True), Memory(), Log()
        self.updating = self.passed = self.asleep = self._stopped = self._away = self.eager = False
        self.on_root: Callable[[Tensor], Any] | None = None
        self.outside: dict[int, weakref.ref[Tensor]] = {}
        self.items: list[Record] = []
        self.skipped: set[int] = set()
        self._to_keep = _KEPT if keep else 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if self.eager:
            return self.see(func, args, kwargs or {})
        return super().__torch_dispatch__(func, types, args, kwargs)

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an op and check it; ops on tensors that wrap others are left to those, whose own ops are seen."""
        if self.asleep:
            return func(*args, **kwargs)
        known = knowledge(func)
        place = None
        if self.places.is_current and not self.ranges:
            if known.view and self._is_known(args[0]):
                return func(*args, **kwargs)
            if torch._C._current_autograd_node() is not None:
                place = _PASSING
        place = place or self.places.place()
        read: list[tuple[Tensor, int]] = []
        latest = self.memory.latest
        for value in (*args, *kwargs.values()) if kwargs else args:
            if type(value) is Tensor and value.layout is torch.strided and (key := value.untyped_storage()._cdata) in latest:
                if value.dtype in NUMBERS:
                    read.append((value, key))
            elif isinstance(value, Tensor):
                if not self._read(value, read):
                    return NotImplemented
            elif isinstance(value, (list, tuple)):
                for part in tensors(value):
                    if not self._read(part, read):
                        return NotImplemented
        written = known.written(args, kwargs) if known.writes else None
        if written and known.overwrites:
            read = self._not_overwritten(read, written)
        if known.name not in _ALIASES:
            for value, key in read:
                if key not in latest:
                    self._from_outside(value, self._precise(place))
        if known.view:
            return func(*args, **kwargs)
        before = self._before(read, written) if written else {}
        if place.phase == "backward":
            self._in_pass(known.name, read)
        outputs = func(*args, **kwargs) if kwargs else func(*args)
        if isinstance(outputs, Tensor) and not written:
            made = [outputs] if checkable(outputs) else []
        else:
            results = {id(value): value for value in (*tensors(outputs), *(written or ()))}
            made = [value for value in results.values() if checkable(value)]
        call = (func, known, place, args)
        if torch._C._len_torch_dispatch_stack():
            with _disable_current_modes():
                self._after(call, read, before, made)
        else:
            self._after(call, read, before, made)
        return outputs

    def _read(self, value: Tensor, read: list[tuple[Tensor, int]]) -> bool:
        """Note an argument that can be checked, with the address of its storage; False of one that handles ops itself."""
        kind = type(value)
        if kind is not Tensor and kind is not Parameter and has_own_dispatch(kind):
            return False
        if value.dtype in NUMBERS:
            key = value.untyped_storage()._cdata if value.layout is torch.strided else 0
            if key in self.memory.latest:
                read.append((value, key))
            elif checkable(value):
                read.append((value, address(value)))
        return True

    def _precise(self, place: Place) -> Place:
        """The place of the op that is running, where it was not asked for before."""
        return self.places.place() if place is _PASSING else place

    def _is_known(self, value: Any) -> bool:
        plain = type(value) is Tensor and value.layout is torch.strided
        return plain and value.untyped_storage()._cdata in self.memory.latest

    def _not_overwritten(self, read: list[tuple[Tensor, int]], written: list[Tensor]) -> list[tuple[Tensor, int]]:
        """What an op reads, less the tensors whose entries it replaces."""
        replaced = {id(value) for value in written}
        for value, key in read:
            if id(value) in replaced and key not in self.memory.latest:
                self.outside[key] = weakref.ref(value)
        return [entry for entry in read if id(entry[0]) not in replaced]

    def _in_pass(self, name: str, read: list[tuple[Tensor, int]]) -> None:
        """Notice what a backward pass starts from: autograd makes a cotangent of ones like it, before any node runs."""
        self.passed = True
        if self.on_root is not None and name == "ones_like" and read and torch._C._current_autograd_node() is None:
            with _unseen():
                self.on_root(read[0][0])

    def _from_outside(self, value: Tensor, place: Place) -> None:
        """Note a tensor that no op has made, where it is first used."""
        record = self.log.new("input", place, (), "outside")
        record.shape, record.dtype = value.shape, value.dtype
        if self.ranges:
            with _unseen():
                record.outputs = (facts(value),)
            record.status = "fine" if record.outputs[0].finite else "outside"
        self.memory.put(value, record)
        self.outside[address(value)] = weakref.ref(value)
        if self.ranges and record.status == "outside":
            with _unseen():
                self._judge(record, value, record.outputs[0])

    def _before(self, read: list[tuple[Tensor, int]], written: list[Tensor]) -> dict[int, TensorFacts]:
        """Facts that an op is about to destroy."""
        with _unseen():
            if self.ranges:
                return {id(value): facts(value) for value, _ in read}
            own = {id(value) for value in written}
            own_read = [(value, key) for value, key in read if id(value) in own]
            return {id(value): self._hastily(value, key) for value, key in own_read}

    def _hastily(self, value: Tensor, key: int) -> TensorFacts:
        shape = tuple(value.shape)
        if key in self.memory.doubt and not all_finite(value):
            return facts(value)
        return TensorFacts(shape, value.dtype, value.device)

    def _after(self, call: _Call, read: list[tuple[Tensor, int]], before: dict[int, TensorFacts], made: list[Tensor]) -> None:
        """Check what an op returned and wrote, and note what made it."""
        memory = self.memory
        func, known, place, _ = call
        doubtful = [entry for entry in read if entry[1] in memory.doubt] if memory.doubt else None
        if doubtful:
            self._mark_read(doubtful, known.name, bool(made))
        if not made:
            return
        latest = memory.latest
        status: Status = "unfilled" if known.unfilled else "fine"
        record = self.log.new(func, place, tuple([latest[key].number for _, key in read]), status, self.updating)
        record.shape, record.dtype = made[0].shape, made[0].dtype
        trusted = known.unfilled or (known.safe and not doubtful and not self.ranges)
        for number, value in enumerate(made):
            found = None
            if self.ranges and not known.unfilled:
                found = facts(value)
                record.outputs = (*record.outputs, found)
            if trusted or (all_finite(value) if found is None else found.finite):
                memory.put(value, record)
            else:
                self._offending(call, record, read, before, value, known.keeps_logarithms and number > 0)

    def _mark_read(self, doubtful: list[tuple[Tensor, int]], name: str, makes: bool) -> None:
        """Note that non-finite values went into an op, or into Python."""
        for _, key in doubtful:
            for record in self.memory.doubt[key]:
                record.read |= makes
                if name == "_local_scalar_dense" and record.offends:
                    self.items.append(record)
                if name == _SCALER:
                    self.skipped.add(record.number)

    def _offending(
        self,
        call: _Call,
        whole: Record,
        read: list[tuple[Tensor, int]],
        before: dict[int, TensorFacts],
        value: Tensor,
        auxiliary: bool,
    ) -> None:
        """Find what an op has its NaN or infinity from, and tell it."""
        func, known, place, args = call
        place = self._precise(place)
        inputs, causes, masks, statuses = [], [], [], set[str]()
        for given, key in read:
            seen = before.get(id(given)) or facts(given)
            inputs.append(seen)
            if not seen.finite:
                makers = self._makers(given, key, seen, place)
                causes += [maker for maker in makers if maker.offends]
                masks += [maker for maker in makers if maker.status == "meant"]
                statuses |= {"told" if maker.offends and maker.kind else maker.status for maker in makers}
        found = facts(value)
        meant = not causes and not found.nans
        meant = meant and (known.meant or "meant" in statuses or (auxiliary and only_negative(value)))
        record = self.log.new(func, place, whole.parents, "meant" if meant else "offends", self._in_update(place))
        record.shape, record.dtype, record.outputs = value.shape, value.dtype, (found,)
        record.causes = tuple(dict.fromkeys(cause.number for cause in causes))
        record.origin = min((cause.origin for cause in causes), default=record.number)
        self.log.keep(record)
        self.memory.put(value, record)
        if known.name == _SCALER:
            self.skipped.add(record.number)
        if meant:  # an infinite loss has its cause where -inf turned into inf, else where -inf was put
            record.kind = None if only_negative(value) else "inf"
            record.origin = min((mask.origin for mask in masks if mask.kind == record.kind), default=record.number)
        if not meant:
            finite = all(seen.finite for seen in inputs)
            record.kind = "nan" if found.nans else "overflow" if finite and not known.has_pole(args) else "inf"
            self._tell(record, value, found, tuple(inputs), read if not before else [], "told" not in statuses)

    def _in_update(self, place: Place) -> bool:
        """Whether an op belongs to an optimizer's step, or to one that the user wrote (after the backward pass, unrecorded)."""
        return self.updating or (self.passed and not place.order and not torch.is_grad_enabled())

    def _makers(self, value: Tensor, key: int, seen: TensorFacts, place: Place) -> list[Record]:
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
        strangers = [record for record in doubted if record.status == "outside"]
        record = strangers[0] if strangers else self.log.new("input", place, (), "outside")
        if not strangers:
            self.memory.put(value, record)
        self._judge(record, value, seen)
        return [record]

    def _judge(self, record: Record, value: Tensor, seen: TensorFacts) -> None:
        """Tell a tensor from outside that is not finite, unless it looks like a mask or a bound."""
        record.outputs = (seen,)
        meant = not seen.nans and (not value.ndim or only_negative(value))
        record.status = "meant" if meant else "offends"
        self.log.keep(record)
        if not meant:
            record.kind = "nan" if seen.nans else "inf"
            self._tell(record, value, seen, (), [], True)

    def _tell(
        self,
        record: Record,
        value: Tensor,
        found: TensorFacts,
        inputs: tuple[TensorFacts, ...],
        given: list[tuple[Tensor, int]],
        origin: bool,
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

    def aside(self) -> bool:
        """Leave the stack of modes, where this one is on top, until `back`.

        Returns:
            Whether it left.
        """
        if self._away or torch._C._get_dispatch_stack_at(torch._C._len_torch_dispatch_stack() - 1) is not self:
            return False
        self.__exit__(None, None, None)
        self._away = True
        return True

    def back(self) -> None:
        """Enter the stack of modes again, after `aside`."""
        if self._away:
            self._away = False
            self.__enter__()

    @contextmanager
    def sleeping(self) -> Iterator[None]:
        """Look at nothing while the block runs."""
        before, self.asleep = self.asleep, True
        try:
            yield
        finally:
            self.asleep = before or self._stopped

    def stop(self) -> None:
        """Look at nothing more."""
        self.asleep = self._stopped = True

    def close(self) -> None:
        """Let go of every tensor and storage; the log stays readable."""
        self.memory.close()
        self.outside.clear()


def only_negative(value: Tensor) -> bool:
    """Whether the infinities of a tensor are negative, as in logarithms of probabilities and in masks."""
    return not bool(torch.isposinf(entries(value)).any())


def _unseen() -> AbstractContextManager[Any]:
    """Hide what checks compute from other dispatch modes (a tracer, a counter of operations)."""
    return _disable_current_modes() if torch._C._len_torch_dispatch_stack() else nullcontext()


@contextmanager
def watching(hook: Callable[[NonFiniteEvent], Any]) -> Iterator[None]:
    """Call a hook for every op that gives NaN or infinity, forward or backward, while the block runs.

    Inputs from outside are checked when they are first met (NaN and infinities; ``-inf`` alone, as attention masks have it, is
    taken as meant), then whatever an op returns or writes. Infinities that come from an explicit constant (`full`,
    `masked_fill`, `where`) and what only passes them on are no event; a NaN made of them is. Memory that nobody has filled
    (`empty`) is not checked. Ops of other threads, and those inside a `torch.compile`d function, are not seen. Values that
    later ops clean are told too; `hesse.debug.watch_nonfinite` tells only what reaches a result.

    Args:
        hook: called with a `NonFiniteEvent`, for causes (`event.origin`) and for every value that they spoil. What it raises
            ends the block.

    Cost: a reduction and a read of two numbers for each output of each op, so a wait for the device; for small tensors on a CPU
        about ten times the op itself.
    """
    watch = Watch(hook)
    try:
        with watch:
            yield
    finally:
        watch.close()
