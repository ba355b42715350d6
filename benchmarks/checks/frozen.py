"""The frozen set: planted bugs on which no checker is tuned, and their programs as functions of all their leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import frozen_a, frozen_b, frozen_c, frozen_d
from .bug import Program

BUGS = [bug for part in (frozen_a, frozen_b, frozen_c, frozen_d) for bug in part.BUGS]


def functional(program: Program) -> tuple[Callable[..., Any], list[Tensor]]:
    """A function of the inputs, then a module's parameters, and those leaves; random numbers the same at each call."""
    call = program.call
    held = dict(call.named_parameters()) if isinstance(call, nn.Module) else {}
    inputs = [x.clone().requires_grad_() if x.is_floating_point() else x for x in program.inputs]

    def f(*leaves: Tensor) -> Any:
        torch.manual_seed(5)
        if not isinstance(call, nn.Module):
            return call(*leaves)
        return torch.func.functional_call(call, dict(zip(held, leaves[len(inputs) :], strict=True)), leaves[: len(inputs)])

    return f, [*inputs, *(p.detach().clone().requires_grad_() for p in held.values())]
