"""A hunt for the cause of NaN and infinity in a step: what is watched, where it is decided, and what counts as reached."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hesse.autodiff.events.memory import address
from hesse.autodiff.events.records import Record, checkable, facts
from hesse.autodiff.events.watching import NonFiniteEvent, Watch
from hesse.autodiff.graphs.modules import ModulePaths
from hesse.debug.nonfinite_report import NonfiniteReport, fill
from hesse.debug.sinks import Names, Sink, sinks_of
from hesse.debug.updates import Updates

Hook = Callable[[NonfiniteReport], Any]


class Hunt:
    """Watches a step and decides, where values become results, whether a NaN or an infinity has reached one.

    Args:
        hook: called with the report when something is found; "stop" as its answer ends the watch.
        skipped_steps: also count gradients that a `GradScaler` sees and skips.

    Attributes:
        report: what was found first.
        hook_error: what the hook raised.
    """

    def __init__(self, hook: Hook | None, *, skipped_steps: bool) -> None:
        self.report = NonfiniteReport()
        self.hook_error: BaseException | None = None
        self._hook, self._skipped_steps = hook, skipped_steps
        self._events: dict[int, NonFiniteEvent] = {}
        self._watch = Watch(self._note, ranges=False, keep=True)
        self._watch.on_root = self._root
        self._modules, self._updates = ModulePaths(self._enter), Updates(self._watch, self._check_gradients)
        self._roots, self._told = list[Record](), set[int]()

    def _enter(self, path: str) -> None:
        self._watch.places.module = path

    def _note(self, event: NonFiniteEvent) -> None:
        self._events.setdefault(event.record.origin, event)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch what runs inside; no hook, mode or stance is left after it, also where it raises."""
        with ExitStack() as stack:
            stack.callback(self._watch.close)
            if "torch._dynamo" in sys.modules:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
                self._watch.eager = True
            stack.enter_context(self._modules.watching())
            stack.enter_context(self._watch)
            stack.enter_context(self._updates.following())
            yield

    def _root(self, value: Tensor) -> None:
        """A backward pass starts: a loss that is not finite is found. One that only its last op has spoiled may be scaled by a
        `GradScaler`, and is decided upon at the end."""
        records = self._left(value)
        self._roots += records
        if any(record.origin != record.number for record in records):
            self._decide([Sink("loss", record) for record in self._roots if not self._excused(record)])

    def _left(self, value: Tensor) -> list[Record]:
        """The records of what is not finite in a tensor."""
        doubted = self._watch.memory.doubt.get(address(value), [])
        bad = [record for record in doubted if record.offends or record.status == "meant"]
        return bad[-1:] if bad and not facts(value).finite else []

    def _check_gradients(self, optimizer: Optimizer) -> bool:
        """Before an optimizer reads them."""
        doubt = self._watch.memory.doubt
        found = []
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            grad = p.grad
            if grad is not None and checkable(grad) and address(grad) in doubt:
                found += [Sink("gradient", record, p) for record in self._left(grad)]
        self._decide(found)
        return not found

    def finish(self, returned: Any = None, error: BaseException | None = None) -> None:
        """Decide at the end of the step, while its values are still known.

        Args:
            returned: what the step returned; any tree.
            error: what it raised instead.
        """
        if self.report.error is None:
            self.report.error = error
        if not self._watch.asleep:
            with self._watch.sleeping():
                found = sinks_of(self._watch, self._roots, returned, error, updated=self._updates.steps > 0)
                self._decide(found, last=True)

    def _decide(self, sinks: list[Sink], *, last: bool = False) -> None:
        """Report the first cause that reached one of these; each cause once."""
        watch = self._watch
        sinks = [sink for sink in sinks if sink.record.origin not in self._told and not (last and self._excused(sink.record))]
        if not sinks:
            return
        sink = min(sinks, key=lambda sink: (sink.record.origin, sink.record.number))
        self._told |= {sink.record.origin for sink in sinks}
        cause = watch.log.get(sink.record.origin) or sink.record
        names = Names(self._modules.roots, self._updates.optimizers.values())
        event = self._events.get(cause.number)
        report = self.report if not self.report.found else NonfiniteReport()
        tensor = ""
        if cause.op == "input":
            keys = [key for key, records in watch.memory.doubt.items() if cause in records]
            keys += [key for key, number in watch.memory.inputs.items() if number == cause.number]  # it was overwritten since
            tensor = next(map(names.at, keys), "")
        elif cause.phase == "optimizer":
            tensor = sink.name(names)
        fill(report, cause, sink.record, sink.label(names), tensor, event, watch.log)
        if self._hook is not None:
            self._ask(report)

    def _ask(self, report: NonfiniteReport) -> None:
        assert self._hook is not None
        try:
            answer = self._hook(report)
        except BaseException as error:
            self.hook_error = error
            raise
        if answer == "stop":
            self._watch.stop()

    def _excused(self, record: Record) -> bool:
        """Whether a `GradScaler` has seen what a scaled loss overflowed to, and skips the step."""
        watch = self._watch
        if self._skipped_steps or not watch.skipped:
            return False
        cause = watch.log.get(record.origin)
        if cause is None or cause.kind != "overflow":
            return False
        return record in self._roots or cause in self._roots or cause.phase in ("backward", "double backward")
