"""Another run of a function that leaves no trace: it ends before it would write to memory of others or draw random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.compiled.aliases import writes_of
from hesse.autodiff.dispatching import LightMode


class TraceError(Exception):
    """A second run would have left a trace."""


class SecondRun(LightMode):
    """A context for a run of a function that has run already, in which nothing may change but what the run makes itself.

    Ops that would write to a tensor from outside (running statistics, a counter) or draw random numbers end the run by a
    `TraceError`; what Python does besides (print, append to lists) is not seen.

    Attributes:
        broken: whether an op was stopped; then the run has no meaning, even where the function caught the error.

    Cost: a few microseconds an op.
    """

    def __init__(self) -> None:
        super().__init__()
        self.broken = False
        self._own: set[int] = set()

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an op, or stop it."""
        draws = torch.Tag.nondeterministic_seeded in func.tags
        if draws or any(_memory(t) not in self._own for t in writes_of(func, args, kwargs)):
            self.broken = True
            raise TraceError(f"{func} {'draws random numbers' if draws else 'writes to memory of others'}")
        given = {_memory(t) for t in _tensors((*args, *kwargs.values()))}
        result = func(*args, **kwargs)
        made = result if isinstance(result, (tuple, list)) else (result,)
        self._own.update(cell for cell in map(_memory, _tensors(made)) if cell not in given)
        return result


def without_trace(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function, which is run again only to be looked at: its run is a `SecondRun`.

    Args:
        f: any function.

    Returns:
        A function that raises `TraceError` where f would leave a trace, even where f catches that.
    """

    def run(x: Any) -> Any:
        second = SecondRun()
        with second:
            value = f(x)
        if second.broken:
            raise TraceError("the function went on after it was stopped")
        return value

    return run


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
