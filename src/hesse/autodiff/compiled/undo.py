"""Undo what a run changed outside before it left its path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from hesse.autodiff.compiled.trace import Trace


class Undo:
    """Remembers the random state and the tensors that a trace writes to; calling it puts them back."""

    def __init__(self, trace: Trace, inputs: Sequence[Tensor]) -> None:
        self._random = random_states() if trace.random else None
        written = trace.aliases.written & trace.aliases.external
        places = [n for n in trace.graph.nodes if n.op == "placeholder"]
        self._before = [
            (t, t.detach().clone()) for t, n in zip(inputs, places, strict=True) if trace.aliases.group(n) in written
        ]

    def __call__(self) -> None:
        if self._random is not None:
            restore_random(self._random)
        with torch.no_grad():
            for tensor, value in self._before:
                tensor.copy_(value)


class Rewind:
    """Where a recorded run began: it can be run again from there, after which everything is as it was.

    Args:
        trace: the run.
        random: states of the random generators before it.
    """

    def __init__(self, trace: Trace, random: Sequence[Tensor]) -> None:
        self._random, self._memory = random, list(trace.before.values())

    @contextmanager
    def __call__(self) -> Iterator[None]:
        random, memory = random_states(), [storage.clone() for storage, _ in self._memory]
        restore_random(self._random)
        for storage, before in self._memory:
            storage.copy_(before)
        try:
            yield
        finally:
            restore_random(random)
            for (storage, _), after in zip(self._memory, memory, strict=True):
                storage.copy_(after)


def random_states() -> list[Tensor]:
    """The states of the default generators: of the CPU, then of every GPU in use."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *cuda]


def restore_random(states: Sequence[Tensor]) -> None:
    """Put back what `random_states` gave."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(list(states[1:]))
