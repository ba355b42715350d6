"""What a step holds: the modules, optimizers, schedules and loose parameters of its closure, as its author would list them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.nonfinite.fault import Step


@dataclass
class Holdings:
    """The parts of a step, each once."""

    modules: list[nn.Module] = field(default_factory=list)
    optimizers: list[Optimizer] = field(default_factory=list)
    stateful: list[Any] = field(default_factory=list)


def holdings(step: Step) -> Holdings:
    """Look through the closure of a step, and through the functions and containers in it."""
    found, loose = Holdings(), nn.ParameterList()
    for part in _parts(step, set()):
        if isinstance(part, nn.Module):
            found.modules.append(part)
        elif isinstance(part, Optimizer):
            found.optimizers.append(part)
        elif isinstance(part, nn.Parameter):
            loose.append(part)
        elif hasattr(part, "load_state_dict"):
            found.stateful.append(part)
    if len(loose):
        found.modules.append(loose)
    return found


def _parts(value: Any, seen: set[int]) -> Iterator[Any]:
    if id(value) in seen:
        return
    seen.add(id(value))
    inside: list[Any] = []
    if isinstance(value, (list, tuple)):
        inside = list(value)
    elif isinstance(value, dict):
        inside = list(value.values())
    elif isinstance(value, (nn.Module, Tensor)) or hasattr(value, "load_state_dict"):
        yield value
    elif callable(value):
        bound = [value.__self__] if hasattr(value, "__self__") else []
        inside = bound + [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
    for part in inside:
        yield from _parts(part, seen)
