"""`functional`: a module as a pure function of its parameters."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hesse.core.errors import LeafError

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_guard = threading.Lock()


class FunctionalModule:
    """``f(params, *inputs, **inputs)`` of a module; made by `functional`."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        first_name: dict[int, str] = {}
        self._slots: dict[str, str] = {}
        for prefix, part in module.named_modules():  # every module once, so that a shared module is swapped once
            for name, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
                path = f"{prefix}.{name}" if prefix else name
                self._slots[path] = first_name.setdefault(id(parameter), path)
        with _guard:
            self._lock = _locks.setdefault(module, threading.RLock())

    def __call__(self, params: dict[str, Tensor], *inputs: Any, **named: Any) -> Any:
        unknown = [name for name in params if name not in self._slots]
        if unknown:
            raise LeafError(
                f"{self!r} takes the parameters of its module.",
                f"unknown names {unknown[:3]}",
                "pass a dict like the one that functional(module) returned",
            )
        swapped = {slot: params[owner] for slot, owner in self._slots.items() if owner in params}
        with self._lock:
            state = {**swapped, **{name: buffer.clone() for name, buffer in _buffers(self.module)}}
            return torch.func.functional_call(self.module, state, inputs, named, tie_weights=False)

    def __repr__(self) -> str:
        return f"functional({type(self.module).__name__})"


def _buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, part in module.named_modules():
        for name, buffer in part.named_buffers(recurse=False, remove_duplicate=False):
            yield (f"{prefix}.{name}" if prefix else name), buffer


def functional(module: nn.Module) -> tuple[Callable[..., Any], dict[str, Tensor]]:
    """A module as a pure function and its parameters.

    Args:
        module: any module.

    Returns:
        ``(f, params)``: ``f(params, *inputs, **inputs)`` runs the module with these parameters and leaves it as it was.
        `params` holds the trainable parameters by name, in `named_parameters` order, detached; a tied parameter stands there
        once and serves all its places. Frozen parameters keep the module's values. Buffers are copied at each call, so that
        running statistics do not move.

    Cost: one forward pass a call.
    """
    lazy = [name for name, p in module.named_parameters() if isinstance(p, nn.UninitializedParameter)]
    if lazy:
        raise LeafError(
            "functional(module) needs parameters that have values.",
            f"'{lazy[0]}' is not initialized yet (a lazy module)",
            "run the module once on a batch first",
        )
    params = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    return FunctionalModule(module), params


@contextmanager
def buffers_preserved(module: nn.Module | None) -> Iterator[None]:
    """Put every buffer back to the value it had, if the module's forward pass changed it."""
    if module is None:
        yield
        return
    before = [(buffer, buffer._version, buffer.clone()) for _, buffer in _buffers(module)]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, version, value in before:
                if buffer._version != version:
                    buffer.copy_(value)
