"""Watch every op of a training step, forward and backward, for NaN and infinity."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from hesse.autodiff.dispatching import LightMode
from hesse.autodiff.events.judging import Call, Judge, Read, unseen
from hesse.autodiff.events.memory import address, covers
from hesse.autodiff.events.nonfinite import NonFiniteEvent
from hesse.autodiff.events.ops import NUMBERS, Knowledge, checkable, has_own_dispatch, knowledge, tensors
from hesse.autodiff.events.records import Record, Status, TensorFacts, all_finite, facts
from hesse.autodiff.source_lines import Place, Spot

__all__ = ["NonFiniteEvent", "Watch", "watching"]

_ALIASES = {"detach", "alias"}  # read nothing yet
_PASSING = Place(None, "backward", (), 1)  # of a backward op whose line nobody needs as long as it gives finite numbers
_SCALER = "_amp_foreach_non_finite_check_and_unscale_"
_PLAIN = {Tensor, Parameter}
_LISTS = {list, tuple}
_current_node, _modes_below = torch._C._current_autograd_node, torch._C._len_torch_dispatch_stack


class Watch(LightMode):
    """Checks what every op returns or writes, and follows where NaN and infinity go.

    Args:
        hook: called with a `NonFiniteEvent` for causes and for every value that they spoil.
        ranges: take the range of every value, and check tensors from outside when they are first met; otherwise only sums are
            looked at, and tensors from outside once an op that read them gave something non-finite.
        keep: copy the inputs of the first causes, for `NonFiniteEvent.save`.

    Attributes:
        judge: decides on values that are not finite.
        log, memory, places: the judge's: what ran, which op made what a storage holds, and where ops come from.
        on_root: called with a tensor whose gradient a backward pass is asked for.
        outside: the tensors from outside, held weakly, by the address of their storage.
        items: the offending records that Python read as numbers.
        skipped: the offending gradients that a `GradScaler` has seen.
        asleep: nothing is looked at.
        eager: set by the owner while PyTorch's compiler is kept from running.
    """

    def __init__(self, hook: Callable[[NonFiniteEvent], Any], *, ranges: bool = True, keep: bool = False) -> None:
        super().__init__()
        self.judge, self.ranges = Judge(hook, keep=keep), ranges
        self.places, self.memory, self.log = self.judge.places, self.judge.memory, self.judge.log
        self.asleep = self._stopped = self._away = self.eager = False
        self.on_root: Callable[[Tensor], Any] | None = None
        self.outside: dict[int, weakref.ref[Tensor]] = {}
        self.items: list[Record] = []
        self.skipped: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if self.asleep:
            return func(*args, **(kwargs or {}))
        if self.eager or "torch._dynamo" not in sys.modules:
            return self.see(func, args, kwargs or {})
        return super().__torch_dispatch__(func, types, args, kwargs)

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an op and check it; ops on tensors that wrap others are left to those, whose own ops are seen."""
        known = knowledge(func)
        if self.ranges:
            return self._see_whole((func, known, self.places.spot(), args), kwargs)
        if known.view and type(args[0]) in _PLAIN and self._is_known(args[0]):
            if not known.plain_view:
                self.places.note()
            return func(*args, **kwargs)
        passing = not known.view and _current_node() is not None and self.places.is_current
        call = func, known, _PASSING if passing else self.places.spot(), args
        if known.simple and not _modes_below():
            parents = self._parents(known, args, kwargs)
            if parents is not None:
                return self._see_simple(call, kwargs, parents)
        return self._see_whole(call, kwargs)

    def _is_known(self, value: Tensor) -> bool:
        return value.layout is torch.strided and value.untyped_storage()._cdata in self.memory.latest

    def _parents(self, known: Knowledge, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int] | None:
        """The numbers of the ops that made the arguments; None where one is to be looked at: it is in doubt, comes from outside
        and was not met before, or is no plain tensor."""
        memory, parents = self.memory, []
        latest, doubt = memory.latest, memory.doubt
        strangers = memory.strangers if known.writes or known.safe else ()
        for value in (*args, *kwargs.values()) if kwargs else args:
            kind = type(value)
            if kind in _PLAIN:
                if value.layout is not torch.strided:
                    return None
                key = value.untyped_storage()._cdata
                number = latest.get(key)
                if number is not None:
                    if key in doubt or key in strangers:
                        return None
                    parents.append(number)
                elif value.dtype in NUMBERS:
                    return None
            elif kind in _LISTS:
                if value and not isinstance(value[0], (int, float)):
                    return None
            elif isinstance(value, Tensor):
                return None
        return parents

    def _see_simple(self, call: Call, kwargs: dict[str, Any], parents: list[int]) -> Any:
        """Run an op that was given nothing in doubt."""
        func, known, where, args = call
        if where is _PASSING:
            self.judge.passed = True
        outputs = func(*args, **kwargs)
        number = -1
        for value in (outputs,) if type(outputs) is Tensor else tensors(outputs):
            if value.dtype not in NUMBERS or value._is_zerotensor():
                continue
            if not known.safe or value.layout is not torch.strided:
                try:
                    fine = value.layout is torch.strided and math.isfinite(torch.sum(value).item())
                except (RuntimeError, TypeError):  # of a type that has no sum; of a complex number
                    fine = False
                if not fine:
                    self._look_again(call, kwargs, outputs)
                    return outputs
            if number < 0:
                number = self.log.note((func, where, parents, value.shape, value.dtype, self.judge.updating))
            self.memory.hold(value, number)
        return outputs

    def _look_again(self, call: Call, kwargs: dict[str, Any], outputs: Any) -> None:
        """Check the outputs of a simple op with all care, after it ran."""
        _, known, _, args = call
        read: Read = []
        for value in tensors((*args, *kwargs.values())):
            self._read(value, read)
        written = known.written(args, kwargs)
        keys = {key for value, key in read if any(value is other for other in written)}
        before = {id(value): TensorFacts(tuple(value.shape), value.dtype, value.device) for value, key in read if key in keys}
        self._after(call, read, before, _made(outputs, written))

    def _see_whole(self, call: Call, kwargs: dict[str, Any]) -> Any:
        """Run an op, whatever it is and was given."""
        func, known, where, args = call
        read: Read = []
        for value in tensors((*args, *kwargs.values())):
            if not self._read(value, read):
                return NotImplemented
        written = known.written(args, kwargs) if known.writes else None
        if written and known.overwrites:
            read = self._not_overwritten(read, written)
        if known.name not in _ALIASES:
            for value, key in read:
                if key not in self.memory.latest:
                    self._from_outside(value, where)
        if known.view:
            return func(*args, **kwargs)
        before = self._before(read, written) if written else {}
        self._in_pass(known.name, read)
        outputs = func(*args, **kwargs)
        with unseen():
            self._after(call, read, before, _made(outputs, written))
        return outputs

    def _read(self, value: Tensor, read: Read) -> bool:
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

    def _not_overwritten(self, read: Read, written: list[Tensor]) -> Read:
        """What an op reads, less the tensors whose entries it replaces."""
        replaced = {id(value) for value in written}
        for value, key in read:
            if id(value) in replaced and key not in self.memory.latest:
                self.outside[key] = weakref.ref(value)
        return [entry for entry in read if id(entry[0]) not in replaced]

    def _in_pass(self, name: str, read: Read) -> None:
        """Notice what a backward pass starts from: autograd makes a cotangent of ones like it, before any node runs."""
        if _current_node() is not None:
            self.judge.passed = True
        elif name == "ones_like" and read and self.places.place().phase == "backward":
            self.judge.passed = True
            if self.on_root is not None:
                with unseen():
                    self.on_root(read[0][0])

    def _from_outside(self, value: Tensor, where: Spot | Place) -> None:
        """Note a tensor that no op has made, where it is first used."""
        where = self.places.spot() if where is _PASSING else where
        self.memory.meet(value, self.log.note(("input", where, (), value.shape, value.dtype, False)))
        key = address(value)
        self.outside[key] = weakref.ref(value)
        if self.ranges:
            with unseen():
                found = facts(value)
                if not found.finite:
                    self.judge.judge(key, value, found)
                else:
                    del self.memory.strangers[key]

    @torch.no_grad()
    def meet(self, values: Iterable[Tensor]) -> bool:
        """Look once for all at tensors from outside that ops are about to change; those that are not finite, or a part of
        something larger, stay unmet.

        Args:
            values: checkable.

        Returns:
            Whether all were met, and hold finite numbers.
        """
        memory, where, fine = self.memory, None, True
        for value in values:
            key = address(value)
            if key in memory.latest and key not in memory.strangers:
                fine &= key not in memory.doubt
            elif not (covers(value) and all_finite(value)):
                fine = False
            else:
                where = where or self.places.spot()
                memory.meet(value, self.log.note(("input", where, (), value.shape, value.dtype, False)))
                memory.strangers.pop(key)
                self.outside.setdefault(key, weakref.ref(value))
        return fine

    def _before(self, read: Read, written: list[Tensor]) -> dict[int, TensorFacts]:
        """Facts that an op is about to destroy."""
        with unseen():
            if self.ranges:
                return {id(value): facts(value) for value, _ in read}
            own = {id(value) for value in written}
            keys = {key for value, key in read if id(value) in own}  # others may look at the same memory
            return {id(value): self._hastily(value, key) for value, key in read if key in keys}

    def _hastily(self, value: Tensor, key: int) -> TensorFacts:
        if (key in self.memory.doubt or key in self.memory.strangers) and not all_finite(value):
            return facts(value)
        return TensorFacts(tuple(value.shape), value.dtype, value.device)

    def _after(self, call: Call, read: Read, before: dict[int, TensorFacts], made: list[Tensor]) -> None:
        """Check what an op returned and wrote, and note what made it."""
        func, known, where, _ = call
        memory = self.memory
        marked = [self._mark_read(key, known.name, bool(made)) for _, key in read]
        if not made:
            return
        if known.name == "set_":  # what another process, or nobody, has written there
            for value in made:
                self._from_outside(value, where)
            return
        status: Status = "unfilled" if known.unfilled else "fine"
        first, parents = made[0], [memory.latest[key] for _, key in read]
        record = self.log.new((func, where, parents, first.shape, first.dtype, self.judge.updating), status)
        trusted = known.unfilled or (known.safe and not any(marked) and not self.ranges)
        for number, value in enumerate(made):
            found = None
            if self.ranges and not known.unfilled:
                found = facts(value)
                record.outputs = (*record.outputs, found)
            if trusted or (all_finite(value) if found is None else found.finite):
                memory.put(value, record)
            else:
                self.judge.offending(call, record, read, before, value, known.keeps_logarithms and number > 0)
                if known.name == _SCALER:
                    self.skipped.add(self.log.bad[-1].number)

    def _mark_read(self, key: int, name: str, makes: bool) -> bool:
        """Note that what a storage holds went into an op, or into Python; whether it is in doubt."""
        doubted = self.memory.doubt.get(key, [])
        for record in doubted:
            record.read |= makes
            if name == "_local_scalar_dense" and record.offends:
                self.items.append(record)
            if name == _SCALER:
                self.skipped.add(record.number)
        return bool(doubted) or key in self.memory.strangers

    def aside(self) -> bool:
        """Leave the stack of modes, where this one is on top, until `back`.

        Returns:
            Whether it left.
        """
        if self._away or torch._C._get_dispatch_stack_at(_modes_below() - 1) is not self:
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


def _made(outputs: Any, written: list[Tensor] | None) -> list[Tensor]:
    """What an op returned and wrote, as far as it can be checked."""
    results = {id(value): value for value in (*tensors(outputs), *(written or ()))}
    return [value for value in results.values() if checkable(value)]


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
