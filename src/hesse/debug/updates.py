"""The steps of optimizers in a watched block: unwatched where PyTorch's own can be run again, which costs less."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, SGD, Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from hesse.autodiff.events.records import all_finite, checkable
from hesse.autodiff.events.watching import Watch
from hesse.debug.snapshot import Snapshot

_MOST_BYTES = 2**16
_OWN_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


class Updates:
    """Follows the steps of optimizers on this thread.

    A step of one of PyTorch's optimizers but SGD, on the CPU, runs unwatched. Small parameters and their state are copied
    before. Where the step leaves something that is not finite, the copy is put back and the same step runs again, watched. Of
    large ones, a copy of which costs more than the step, there is none: they are looked at before and after, and the step is
    told as a whole. Other optimizers, steps with a closure or hooks and steps on values that are not finite are watched at
    once.

    Args:
        watch: sees the ops.
        check: called with an optimizer before it reads its gradients; answers whether they are finite.

    Attributes:
        steps: how many steps began.
        optimizers: those whose steps began, by `id`.
    """

    def __init__(self, watch: Watch, check: Callable[[Optimizer], bool]) -> None:
        self._watch, self._check, self._thread = watch, check, threading.get_ident()
        self._copy: Snapshot | None = None
        self._again, self._large, self.steps = False, False, 0
        self.optimizers: dict[int, Optimizer] = {}

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow steps inside; nothing is left after it, also where a step raised."""
        before = register_optimizer_step_pre_hook(self._before)
        after = register_optimizer_step_post_hook(self._after)
        try:
            yield
        finally:
            before.remove()
            after.remove()
            self._watch.back()
            self._watch.judge.updating, self._copy = False, None

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._again or threading.get_ident() != self._thread:
            return
        self.steps += 1
        self._watch.back()
        self.optimizers[id(optimizer)] = optimizer
        calls_back = bool(args[1:]) or any(map(callable, kwargs.values()))
        self._watch.judge.updating, self._watch.judge.closure = True, calls_back
        known = not calls_back and not any(kwargs.values()) and _repeatable(optimizer)
        small = known and _is_small(optimizer)
        with self._watch.sleeping():
            fine = self._check(optimizer)
            fine = (small or self._watch.meet(_tensors_of(optimizer))) and fine
        self._large = False
        if known and fine and self._watch.aside():
            self._large = not small
            if small:
                self._copy = Snapshot((), [optimizer], gradients=False)
                self._copy.take()

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._again or threading.get_ident() != self._thread:
            return
        self._watch.judge.updating = self._large
        copy, self._copy = self._copy, None
        if copy is not None:
            self._repeat(optimizer, copy)
        elif self._large:
            self._look(optimizer)
        self._watch.judge.updating = self._large = False

    @torch.no_grad()
    def _look(self, optimizer: Optimizer) -> None:
        """Tell what a step left that was not copied."""
        judge, name = self._watch.judge, f"torch.optim.{type(optimizer).__name__}.step"
        for value in _tensors_of(optimizer):
            if not all_finite(value):
                judge.unwatched(name, value, [value.grad] if value.grad is not None and checkable(value.grad) else [])
        self._watch.back()

    def _repeat(self, optimizer: Optimizer, copy: Snapshot) -> None:
        """Run a step again, watched, where it left something that is not finite."""
        with torch.no_grad():
            fine = all(map(all_finite, _tensors_of(optimizer)))
        if not fine:
            copy.restore()
        self._watch.back()
        if not fine:
            self._again = self._watch.judge.updating = True
            try:
                type(optimizer).step(optimizer)
            finally:
                self._again = False


def _repeatable(optimizer: Optimizer) -> bool:
    """Whether a step can be run again from a copy, and that costs less than to watch it (the few ops of SGD do not)."""
    own = type(optimizer).__module__.startswith("torch.optim") and not isinstance(optimizer, (LBFGS, SGD))
    if not own or any(getattr(optimizer, name, None) for name in _OWN_HOOKS) or hasattr(optimizer, "grad_scale"):
        return False
    if any(group.get("differentiable") or group.get("capturable") for group in optimizer.param_groups):
        return False
    held = (p for group in optimizer.param_groups for p in group["params"])
    return all(type(p) in (Tensor, torch.nn.Parameter) and p.device.type == "cpu" for p in held)


def _is_small(optimizer: Optimizer) -> bool:
    """Whether to copy what an optimizer holds costs less than its step: on average, 64 KiB a parameter."""
    sizes = [p.numel() * p.element_size() for group in optimizer.param_groups for p in group["params"]]
    return sum(sizes) <= _MOST_BYTES * len(sizes)


def _tensors_of(optimizer: Optimizer) -> Iterator[Tensor]:
    """The parameters and the state of an optimizer, without counters."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                for value in (p, *optimizer.state.get(p, {}).values()):
                    if checkable(value) and value.ndim:
                        yield value
