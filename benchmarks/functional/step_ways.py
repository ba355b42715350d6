"""The columns of the second table: ways to write a training step (value, gradient, update by plain gradient descent).

``way(original)`` gives ``(step, state)``: ``step(x, y)`` does one and gives the value, ``state()`` the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import hesse
from benchmarks.functional.originals import RATE, Original, Params

Step = Callable[[Tensor, Tensor], Tensor]
Made = tuple[Step, Callable[[], Params]]


def _by_hand(original: Original) -> Made:
    return _written_out(original, lambda loss: loss)


def _compiled_loss(original: Original) -> Made:
    return _written_out(original, torch.compile)


def _written_out(original: Original, wrap: Callable[[Any], Any]) -> Made:
    if original.plain is not None:
        return _of_module(original.plain, wrap)
    params = {name: p.clone().requires_grad_() for name, p in original.params.items()}
    leaves, loss = list(params.values()), wrap(original.loss)

    def step(x: Tensor, y: Tensor) -> Tensor:
        value = loss(params, x, y)
        grads = torch.autograd.grad(value, leaves)
        with torch.no_grad():
            for p, g in zip(leaves, grads, strict=True):
                p.sub_(g, alpha=RATE)
        return value.detach()

    return step, lambda: params


def _of_module(module: torch.nn.Module, wrap: Callable[[Any], Any]) -> Made:
    leaves = list(module.parameters())

    def of_batch(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(module(x), y)

    loss = wrap(of_batch)

    def step(x: Tensor, y: Tensor) -> Tensor:
        value = loss(x, y)
        grads = torch.autograd.grad(value, leaves)
        with torch.no_grad():
            for p, g in zip(leaves, grads, strict=True):
                p.sub_(g, alpha=RATE)
        return value.detach()

    return step, lambda: dict(module.named_parameters())


def _hesse(mode: Any) -> Callable[[Original], Made]:
    def made(original: Original) -> Made:
        params = {name: p.clone() for name, p in original.params.items()}
        df = hesse.grad(original.loss, compile=mode)

        def step(x: Tensor, y: Tensor) -> Tensor:
            grads, value = df(params, x, y)
            for p, g in zip(params.values(), grads.values(), strict=True):
                p.sub_(g, alpha=RATE)
            return value

        return step, lambda: params

    return made


def _whole(step: Callable[[Params, Tensor, Tensor], tuple[Tensor, Params]], original: Original) -> Made:
    """A step that is one pure function, the update in it."""
    held = {name: p.clone() for name, p in original.params.items()}

    def run(x: Tensor, y: Tensor) -> Tensor:
        nonlocal held
        value, held = step(held, x, y)
        return value

    return run, lambda: held


def _whole_compiled(original: Original) -> Made:
    derive = torch.func.grad_and_value(original.loss)

    def step(params: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Params]:
        grads, value = derive(params, x, y)
        return value, {name: p - RATE * grads[name] for name, p in params.items()}

    return _whole(torch.compile(step), original)


def _whole_native(original: Original) -> Made:
    derive = hesse.grad(original.loss)

    def step(params: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Params]:
        grads, value = derive(params, x, y)
        return value, {name: p - RATE * grads[name] for name, p in params.items()}

    return _whole(hesse.grad(step, with_gradients=False, compile="native"), original)


WAYS: dict[str, Callable[[Original], Made]] = {
    "hand": _by_hand,
    "compile": _compiled_loss,
    "compile_step": _whole_compiled,
    "direct": _hesse("off"),
    "replay": _hesse("replay"),
    "native": _hesse("native"),
    "native_step": _whole_native,
}
