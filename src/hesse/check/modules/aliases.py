"""Parameters that a module also holds in lists and dicts of its own, as ``self.weights = [self.first, self.second]``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Slot = tuple[Any, Any]  # a list or a dict, and the index or the key in it
_OWN = ("_parameters", "_buffers", "_modules", "_flat_weights")  # the last: made anew by recurrences in each call
_DEEPEST = 3


def alias_slots(module: nn.Module) -> dict[int, list[Slot]]:
    """Where the module's parameters stand in lists and dicts besides, by id."""
    own = {id(p) for p in module.parameters()}
    found: dict[int, list[Slot]] = {}
    for part in module.modules():
        for key, value in vars(part).items():
            if key not in _OWN and isinstance(value, (list, dict)) and value:
                for slot, held in _entries(value, _DEEPEST):
                    if id(held) in own:
                        found.setdefault(id(held), []).append(slot)
    return found


@contextmanager
def aliases_follow(module: nn.Module, parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Let lists and dicts hold other tensors in the place of parameters, which come back afterwards.

    Args:
        module: whose call runs inside.
        parameters: by name.
    """
    slots = alias_slots(module) if parameters else {}
    replaced = []
    if slots:
        for name, p in module.named_parameters():
            if name in parameters:
                for held, key in slots.get(id(p), ()):
                    replaced.append((held, key, p))
                    held[key] = parameters[name]
    try:
        yield
    finally:
        for held, key, p in replaced:
            held[key] = p


def _entries(value: Any, depth: int) -> Iterator[tuple[Slot, Any]]:
    pairs = list(enumerate(value)) if isinstance(value, list) else list(value.items())
    for key, held in pairs:
        if isinstance(held, Tensor):
            yield (value, key), held
        elif isinstance(held, (list, dict)) and depth > 1:
            yield from _entries(held, depth - 1)
