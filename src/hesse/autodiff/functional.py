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

    def __init__(self, module: nn.Module, lock: threading.RLock) -> None:
        self.module, self._lock = module, lock
        first_name: dict[int, str] = {}
        self._slots: dict[str, str] = {}
        for prefix, part in module.named_modules():  # every module once, so that a shared module is swapped once
            for name, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
                path = f"{prefix}.{name}" if prefix else name
                self._slots[path] = first_name.setdefault(id(parameter), path)

    def __call__(self, params: dict[str, Tensor], *inputs: Any, **named: Any) -> Any:
        self._require_known(params)
        swapped = {slot: params[owner] for slot, owner in self._slots.items() if owner in params}
        with self._lock:
            copies: dict[int, Tensor] = {}  # a buffer that two modules share stays shared
            buffers = {name: copies.setdefault(id(buffer), buffer.clone()) for name, buffer in _buffers(self.module)}
            state = {**swapped, **buffers}
            return torch.func.functional_call(self.module, state, inputs, named, tie_weights=False)

    def _require_known(self, params: dict[str, Tensor]) -> None:
        asked = f"{self!r} takes the parameters of its module."
        for name in params:
            owner = self._slots.get(name)
            if owner is None:
                raise LeafError(asked, f"unknown name '{name}'", "pass a dict like the one that functional(module) returned")
            if owner != name:
                raise LeafError(asked, f"'{name}', which is tied to '{owner}'", f"pass it once, as '{owner}'")

    def __reduce__(self) -> tuple[Any, ...]:  # locks do not pickle; a copy has one of its own
        return _remade, (self.module,)

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
    with _guard:
        lock = _locks.setdefault(module, threading.RLock())
    with lock:  # another thread may be running the module with parameters of its own
        return _functional(module, lock)


def _remade(module: nn.Module) -> FunctionalModule:
    with _guard:
        return FunctionalModule(module, _locks.setdefault(module, threading.RLock()))


def _functional(module: nn.Module, lock: threading.RLock) -> tuple[Callable[..., Any], dict[str, Tensor]]:
    lazy = [name for name, t in [*module.named_parameters(), *module.named_buffers()] if nn.parameter.is_lazy(t)]
    if lazy:
        raise LeafError(
            "functional(module) needs parameters and buffers that have values.",
            f"'{lazy[0]}' is not initialized yet (a lazy module)",
            "run the module once on a batch first",
        )
    params = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    return FunctionalModule(module, lock), params


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
                elif not torch.equal(buffer, value):
                    buffer.data.copy_(value)  # batch norm writes its statistics past the version counter, and so does this
