"""What tells modules apart, so that processes do not average the curvature of models that differ."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import Tensor, nn

from hesse.distributed.facts import content_hash

_SIMPLE = (bool, int, float, str, type(None))


def module_options(module: nn.Module) -> dict[str, str]:
    """Of every module within, by its path: the class, the mode, and the options that torch's own classes take.

    Attributes of the user's own are left out: they may belong to one process.
    """
    return {name: f"{type(part).__qualname__} {dict(_options(part))}" for name, part in module.named_modules()}


def module_text(module: nn.Module) -> str:
    """A text of classes, options, and the numbers in parameters and buffers."""
    state = {name: _hash(leaf) for name, leaf in (*module.named_parameters(), *module.named_buffers())}
    return f"{module_options(module)} {state}"


def _options(part: nn.Module) -> Iterator[tuple[str, Any]]:
    yield "training", part.training
    for name in _names(type(part)):
        value = vars(part).get(name)
        if isinstance(value, _SIMPLE) or (isinstance(value, tuple) and all(isinstance(entry, _SIMPLE) for entry in value)):
            yield name, value


@cache
def _names(kind: type[nn.Module]) -> tuple[str, ...]:
    """What the torch classes among a class and its bases call their options."""
    names: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.startswith("torch.") and base is not nn.Module and issubclass(base, nn.Module):
            names |= {*inspect.signature(base.__init__).parameters, *base.__dict__.get("__constants__", ())}
    return tuple(sorted(names - {"self", "device", "dtype"}))


def _hash(leaf: Tensor) -> str:
    return f"{leaf.dtype} {list(leaf.shape)} {'meta' if leaf.is_meta else content_hash(leaf)}"
