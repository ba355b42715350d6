"""The state that a training step changes, copied so that the step can be run again: parameters, buffers, gradients, optimizers,
random numbers, and whatever has a `state_dict`."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Snapshot:
    """Copies of a training state, kept in the same memory from one `take` to the next.

    Args:
        tensors: what is written in place: parameters and buffers.
        optimizers: their state and hyperparameters are copied, and the parameters that they hold.
        stateful: objects with `state_dict` and `load_state_dict` (schedulers, gradient scalers).
        generators: random generators besides the default ones of PyTorch, NumPy and Python.
        gradients: also copy the `.grad` of the tensors.
    """

    def __init__(
        self,
        tensors: Iterable[Tensor],
        optimizers: Iterable[Optimizer],
        stateful: Iterable[Any] = (),
        generators: Iterable[torch.Generator] = (),
        *,
        gradients: bool = True,
    ) -> None:
        self._optimizers, self._stateful, self._generators = list(optimizers), list(stateful), list(generators)
        held = [p for optimizer in self._optimizers for group in optimizer.param_groups for p in group["params"]]
        self._tensors = list({id(value): value for value in (*tensors, *held)}.values())
        self._gradients = gradients
        self._copies: list[Tensor] = []
        self._states: list[_OptimizerState] = []
        self._grads: list[Tensor | None] = []
        self._dicts: list[Any] = []
        self._random: tuple[Any, ...] = ()

    def take(self) -> None:
        """Copy the state as it is now.

        Cost: one pass over parameters, buffers, gradients and optimizer state.
        """
        with torch.no_grad():
            if self._copies:
                torch._foreach_copy_(self._copies, [value.detach() for value in self._tensors])
            else:
                clones = _clones(self._tensors)
                self._copies = [clones[id(value)] for value in self._tensors]
            self._grads = [_cloned(value.grad) if self._gradients and value.is_leaf else None for value in self._tensors]
            self._states = [_OptimizerState(optimizer) for optimizer in self._optimizers]
        self._dicts = [copy.deepcopy(item.state_dict()) for item in self._stateful]
        self._random = (*_random_states(), [generator.get_state() for generator in self._generators])

    def restore(self) -> None:
        """Put the state back, into the same tensors."""
        with torch.no_grad():
            for value, held in zip(self._tensors, self._copies, strict=True):
                value.copy_(held)
            if self._gradients:
                for value, held in zip(self._tensors, self._grads, strict=True):
                    _give_back(value, held)
            for state in self._states:
                state.restore()
        for item, held in zip(self._stateful, self._dicts, strict=True):
            item.load_state_dict(copy.deepcopy(held))
        cpu, cuda, numpys, python, own = self._random
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        np.random.set_state(numpys)
        random.setstate(python)
        for generator, state in zip(self._generators, own, strict=True):
            generator.set_state(state)


class _OptimizerState:
    """One optimizer's state and hyperparameters."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
        clones = _clones([*_tensors_in(optimizer.state), *_tensors_in(groups)])
        self.state = {key: _copied(entry, clones) for key, entry in optimizer.state.items()}
        self.groups = [_copied(group, clones) for group in groups]

    def restore(self) -> None:
        state = self.optimizer.state
        for key in [key for key in state if key not in self.state]:
            del state[key]
        for key, entry in self.state.items():
            state[key] = _merged(state.get(key), entry)
        for group, held in zip(self.optimizer.param_groups, self.groups, strict=True):
            for name, value in held.items():
                group[name] = _merged(group.get(name), value)


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors among the values of a tree of dicts, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict) or type(value) in (list, tuple):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(entry)


def _clones(values: Iterable[Tensor]) -> dict[int, Tensor]:
    """Clones of tensors, by `id`; of plain ones in one call, which costs half."""
    values = list(values)
    plain = [value for value in values if type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided]
    found = {id(value): value.detach().clone() for value in values} if len(plain) < len(values) else {}
    if values and not found:
        found = dict(zip(map(id, values), torch._foreach_clone([value.detach() for value in values]), strict=True))
    return found


def _copied(value: Any, clones: dict[int, Tensor]) -> Any:
    """A copy of a tree of dicts, lists and tuples, with clones of its tensors."""
    if isinstance(value, Tensor):
        return clones[id(value)]
    if isinstance(value, dict):
        return {key: _copied(entry, clones) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(entry, clones) for entry in value)
    return value


def _merged(current: Any, held: Any) -> Any:
    """What was held, in the tensors that are there now where they fit."""
    if isinstance(held, Tensor):
        if isinstance(current, Tensor) and current.shape == held.shape and current.dtype == held.dtype:
            return current.copy_(held)
        return held.clone()
    if isinstance(held, dict):
        before = current if isinstance(current, dict) else {}
        return {key: _merged(before.get(key), entry) for key, entry in held.items()}
    return _copied(held, _clones(_tensors_in(held)))


def _cloned(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach().clone()


def _give_back(value: Tensor, held: Tensor | None) -> None:
    if not value.is_leaf:
        return
    if held is None or value.grad is None or value.grad.layout is not held.layout or value.grad.shape != held.shape:
        value.grad = _cloned(held)
    else:
        value.grad.copy_(held)


def _random_states() -> tuple[Any, Any, Any, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return torch.get_rng_state(), cuda, np.random.get_state(), random.getstate()


def state_tensors(parts: Iterable[nn.Module | Tensor], optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """The parameters and buffers of modules by name, tensors that stand alone, and what optimizers hold besides; each once.

    Args:
        parts: modules and tensors; names of the second and later modules that are taken get a number.
        optimizers: any optimizers.

    Returns:
        ``{name: tensor}``.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    held = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    for number, part in enumerate((*parts, *held)):
        named = [(f"tensor {number}", part)]
        if isinstance(part, nn.Module):
            named = [*part.named_parameters(), *part.named_buffers()]
        for name, value in named:
            if isinstance(value, Tensor) and id(value) not in seen:
                seen.add(id(value))
                found[name if name not in found else f"{number}.{name}"] = value
    return found
