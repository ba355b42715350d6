"""A user's module, run and put back exactly as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_CONTAINERS = (dict, list, set)


@dataclass(frozen=True, eq=False)
class _Kept:
    """A tensor as it was: its value, its gradient and that one's value, and whether it requires gradients."""

    tensor: Tensor
    value: Tensor
    grad: Tensor | None
    grad_value: Tensor | None
    requires_grad: bool

    def put_back(self) -> None:
        t = self.tensor
        _write(t, self.value)
        if self.grad is not None and self.grad_value is not None:
            _write(self.grad, self.grad_value)
        if t.is_leaf:
            if t.grad is not self.grad:
                t.grad = self.grad
            if t.requires_grad != self.requires_grad:
                t.requires_grad_(self.requires_grad)


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Put back whatever happens to a module inside, exceptions or not.

    Values, `.grad` and `requires_grad` of parameters, buffers and tensors held as attributes; every attribute of every part,
    with the entries of dicts, lists and sets (hooks, flags of training, caches); the state of torch's random numbers.

    Args:
        module: of any kind; lazy parameters have no values to keep.
    """
    parts = list(module.modules())
    attributes = [(part, dict(vars(part))) for part in parts]
    held = (value for _, own in attributes for value in own.values())
    containers = [(value, copy.copy(value)) for value in held if isinstance(value, _CONTAINERS)]
    kept = [_keep(tensor) for tensor in _tensors(module, attributes)]
    devices = sorted({k.tensor.device.index or 0 for k in kept if k.tensor.is_cuda})
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            for value, content in containers:
                _refill(value, content)
            for part, own in attributes:
                if _differ(vars(part), own):
                    vars(part).clear()
                    vars(part).update(own)
            for entry in kept:
                entry.put_back()


@contextmanager
def recording() -> Iterator[None]:
    """Record graphs, whatever mode surrounds this, and let autocast convert parameters anew at each use."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)


def _tensors(module: nn.Module, attributes: list[tuple[nn.Module, dict[str, Any]]]) -> list[Tensor]:
    held = [value for _, own in attributes for value in own.values() if isinstance(value, Tensor)]
    everything = [*module.parameters(), *module.buffers(), *held]
    return list({id(t): t for t in everything if not nn.parameter.is_lazy(t)}.values())


def _keep(tensor: Tensor) -> _Kept:
    grad = tensor.grad if tensor.is_leaf else None
    return _Kept(tensor, tensor.detach().clone(), grad, None if grad is None else grad.detach().clone(), tensor.requires_grad)


def _write(tensor: Tensor, value: Tensor) -> None:
    if tensor.layout is not torch.strided or not torch.equal(tensor, value):
        with torch.no_grad():
            tensor.data.copy_(value)


def _differ(now: dict[str, Any], before: dict[str, Any]) -> bool:
    return len(now) != len(before) or any(name not in now or now[name] is not value for name, value in before.items())


def _refill(container: Any, content: Any) -> None:
    container.clear()
    container.extend(content) if isinstance(container, list) else container.update(content)
