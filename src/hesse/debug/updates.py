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

_MOST_BYTES = 2**28
_OWN_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


class Updates:
    """Follows the steps of optimizers on this thread.

    A step of one of PyTorch's optimizers but SGD, on the CPU, runs unwatched, from a copy of its parameters and state. Where
    it leaves something that is not finite, the copy is put back and the same step runs again, watched. Other optimizers, steps
    with a closure or hooks and steps on gradients that are not finite are watched at once.

    Args:
        watch: sees the ops.
        check: called with an optimizer before it reads its gradients; answers whether they are finite.

    Attributes:
        steps: how many steps began.
    """

    def __init__(self, watch: Watch, check: Callable[[Optimizer], bool]) -> None:
        self._watch, self._check, self._thread = watch, check, threading.get_ident()
        self._copy: Snapshot | None = None
        self._again, self.steps = False, 0

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
            self._watch.updating, self._copy = False, None

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._again or threading.get_ident() != self._thread:
            return
        self.steps += 1
        self._watch.back()
        self._watch.updating = True
        with self._watch.sleeping():
            fine = self._check(optimizer)
        if fine and not args[1:] and not any(kwargs.values()) and _repeatable(optimizer) and self._watch.aside():
            self._copy = Snapshot((), [optimizer], gradients=False)
            self._copy.take()

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._again or threading.get_ident() != self._thread:
            return
        self._watch.updating = False
        copy, self._copy = self._copy, None
        if copy is None:
            return
        fine = all(map(all_finite, _tensors_of(optimizer)))
        if not fine:
            copy.restore()
        self._watch.back()
        if not fine:
            self._again = self._watch.updating = True
            try:
                type(optimizer).step(optimizer)
            finally:
                self._again = self._watch.updating = False


def _repeatable(optimizer: Optimizer) -> bool:
    """Whether a step can be run again from a copy, which costs less than to watch it (the few ops of SGD do not)."""
    own = type(optimizer).__module__.startswith("torch.optim") and not isinstance(optimizer, (LBFGS, SGD))
    if not own or any(getattr(optimizer, name, None) for name in _OWN_HOOKS) or hasattr(optimizer, "grad_scale"):
        return False
    if any(group.get("differentiable") or group.get("capturable") for group in optimizer.param_groups):
        return False
    held = [p for group in optimizer.param_groups for p in group["params"]]
    plain = all(type(p) in (Tensor, torch.nn.Parameter) and p.device.type == "cpu" for p in held)
    return plain and sum(p.numel() * p.element_size() for p in held) <= _MOST_BYTES


def _tensors_of(optimizer: Optimizer) -> Iterator[Tensor]:
    """The parameters and the state of an optimizer, without counters."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                for value in (p, *optimizer.state.get(p, {}).values()):
                    if checkable(value) and value.ndim:
                        yield value.detach()
