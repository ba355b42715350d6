"""Where inductor (torch 2.13) has to be helped: operations that it refuses, an order that it forgets, memory read too late.

A node that writes into a buffer gives it a new name, under which later nodes wait for it. Inductor forgets that name where it
fits the loops of a node to those of another one on a CPU: the node may then run before what it reads was written. Of the
program that follows, a number is wrong, or it reads memory that was handed on, which ends the process (a convolution with
batch normalization, GELU and max-pooling, whose Hessian product adds into a buffer of zeros).
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from typing import Any

from hesse.autodiff.compiled.functional_form import NativeUnavailable

_HANDED_ON = re.compile(r"= std::move\((buf\d+)\);")
_ORDERED = "hesse: mutations keep their order"  # programs of other orders in inductor's cache are not taken


class Misordered(NativeUnavailable):
    """A program of inductor reads memory after it was handed on; to run it could end the process."""


@contextlib.contextmanager
def helped_inductor() -> Iterator[None]:
    """Within this context inductor compiles what it would refuse, and keeps the order of what writes and reads.

    One thread at a time may be in it. What another thread compiles meanwhile is compiled in the same way.
    """
    from torch.compiler import config

    settings: Any = config
    with _fallbacks_allowed(), _renames_kept(), settings.patch(cache_key_tag=config.cache_key_tag + _ORDERED):
        yield


@contextlib.contextmanager
def _fallbacks_allowed() -> Iterator[None]:
    """Operations without a lowering call the eager kernel, also where the environment variable CI is set.

    There inductor refuses those for which a decomposition exists somewhere, as a reminder to its own developers.
    """
    from torch._inductor import graph

    make_fallback = graph.make_fallback
    graph.make_fallback = functools.partial(make_fallback, warn=False)
    try:
        yield
    finally:
        graph.make_fallback = make_fallback


@contextlib.contextmanager
def _renames_kept() -> Iterator[None]:
    """A node whose loops are fitted goes on waiting for those that write what it reads."""
    from torch._inductor import scheduler

    kind: Any = scheduler.SchedulerNode
    fit = kind.recompute_size_and_body

    @functools.wraps(fit)
    def fit_and_rename(node: Any, *args: Any, **kwargs: Any) -> None:
        fit(node, *args, **kwargs)
        if node.mutation_renames:
            node.set_read_writes(node.read_writes.rename(node.mutation_renames))

    kind.recompute_size_and_body = fit_and_rename
    try:
        yield
    finally:
        kind.recompute_size_and_body = fit


def read_after_handed_on(source: str) -> str:
    """The first buffer that generated C++ reads after another one took over its memory.

    Args:
        source: of the functions that call the kernels.

    Returns:
        Its name; empty if there is none, as in every program that is right.
    """
    for found in _HANDED_ON.finditer(source):
        if re.search(rf"\b{found[1]}\b(?!\.reset\(\))", source[found.end() :]):
            return found[1]
    return ""
