"""What a test session does to the code that it runs, kept away from checks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Let warnings be warnings, where the session makes errors of them.

    A check runs code in ways that its author does not (forward mode, `vmap`, 16-bit rounding). Torch itself warns there, and an
    error in its place would count as one of the function's.
    """
    with warnings.catch_warnings():
        warnings.filters = [("default", *rest) if action == "error" else (action, *rest) for action, *rest in warnings.filters]
        yield
