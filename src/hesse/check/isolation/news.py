"""What a check is doing, told to whoever listens: the parent process of an isolated run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from hesse.check.check_report import Comparison, Finding


@dataclass(frozen=True)
class Running:
    """A comparison that begins.

    Attributes:
        check: what is compared, as in `Comparison`.
        leaf: the leaf that it concerns, if one.
    """

    check: str
    leaf: str = ""


News = Running | Comparison | Finding
_listener: ContextVar[Callable[[News], None] | None] = ContextVar("listener", default=None)


def tell(*news: News) -> None:
    """Tell the listener, if there is one, that a comparison begins, or what came out.

    Args:
        news: a `Running` before the user's code is called; `Comparison` and `Finding` afterwards.
    """
    listener = _listener.get()
    if listener is not None:
        for item in news:
            listener(item)


@contextmanager
def listening(listener: Callable[[News], None]) -> Iterator[None]:
    """Have a function called with all news of the checks that run inside.

    Args:
        listener: takes one piece of news.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
