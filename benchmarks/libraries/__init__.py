"""One file a library, with the quantities it offers. It imports that library: only its own worker imports it.

A file has `DISTRIBUTION` (whose version is reported) and `TASKS`: quantity -> a function that prepares the
problem, untimed, and returns the `Task`. A library that changes the model gets its own copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


def _same(result: Any) -> Any:
    return result


class Task(NamedTuple):
    """What is timed, and how its result is read: both give what `benchmarks.quantities.as_blocks` takes."""

    run: Callable[[], Any]
    read: Callable[[Any], Any] = _same
