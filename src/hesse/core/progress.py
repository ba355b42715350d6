"""Progress of long work: bars for whatever takes over a second, inside ``with hesse.progress():``.

Whatever loops calls `track`; outside the context that costs one attribute look-up. The context is
thread-local, so one thread's bars never show another's work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from hesse.core.errors import MissingExtraError

Item = TypeVar("Item")
_PATIENCE_SECONDS = 1.0
_state = threading.local()


class Sink(Protocol):
    """Where progress goes: told of a task, of its steps, and of its end."""

    def start(self, label: str, total: int | None) -> int:
        """A task begins to be shown; returns its handle."""
        ...

    def advance(self, handle: int, steps: int) -> None:
        """So many more steps are done."""
        ...

    def finish(self, handle: int) -> None:
        """The task is over."""
        ...


class _RichSink:
    def __init__(self) -> None:
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        except ImportError as error:
            raise MissingExtraError(
                "hesse.progress() draws its bars with rich.", "rich is not installed", "pip install 'hesse[report]'"
            ) from error
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        self.bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.tasks: dict[int, Any] = {}

    def start(self, label: str, total: int | None) -> int:
        task = self.bars.add_task(label, total=total)
        self.tasks[int(task)] = task
        return int(task)

    def advance(self, handle: int, steps: int) -> None:
        self.bars.advance(self.tasks[handle], steps)

    def finish(self, handle: int) -> None:
        self.bars.remove_task(self.tasks.pop(handle))


@contextmanager
def progress(sink: Sink | None = None) -> Iterator[None]:
    """Show progress bars for whatever inside takes over a second.

    Args:
        sink: where to show it; by default bars on standard error, drawn by rich.
    """
    previous = getattr(_state, "sink", None)
    own = _RichSink() if sink is None else None
    _state.sink = own if own is not None else sink
    try:
        if own is None:
            yield
        else:
            with own.bars:
                yield
    finally:
        _state.sink = previous


def track(
    items: Iterable[Item], label: str, total: int | None = None, size: Callable[[Item], int] | None = None
) -> Iterator[Item]:
    """Iterate over `items`, showing progress once it has taken over a second.

    Args:
        items: what to iterate over.
        label: what the work is called.
        total: how many steps there are; by default the number of items.
        size: the steps that an item stands for, by default one.
    """
    sink: Sink | None = getattr(_state, "sink", None)
    if sink is None:
        yield from items
        return
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # pyright: ignore[reportArgumentType]
    began, handle, done = time.perf_counter(), None, 0
    try:
        for item in items:
            yield item
            steps = 1 if size is None else size(item)
            done += steps
            if handle is not None:
                sink.advance(handle, steps)
            elif time.perf_counter() - began > _PATIENCE_SECONDS:
                handle = sink.start(label, total)
                sink.advance(handle, done)
    finally:
        if handle is not None:
            sink.finish(handle)
