"""Functions whose backward pass is whatever a test says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Planted(torch.autograd.Function):
    """``forward(*tensors)`` with the gradients that ``rule(g, *tensors)`` gives."""

    @staticmethod
    def forward(ctx, rule, forward, *tensors):
        ctx.save_for_backward(*tensors)
        ctx.rule = rule
        return forward(*tensors)

    @staticmethod
    def backward(ctx, g):
        found = ctx.rule(g, *ctx.saved_tensors)
        return None, None, *(found if isinstance(found, tuple) else (found,))


def planted(forward: Callable[..., Tensor], rule: Callable[..., Any]) -> Callable[..., Tensor]:
    """A function with a gradient rule of its own."""
    return lambda *tensors: Planted.apply(rule, forward, *tensors)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)
