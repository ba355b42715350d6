"""How the planted bugs are written: their data, their registration, operations with a derivative written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.checks.bug import Bug, Kind, Program

Make = Callable[[torch.dtype, bool], Program]
BOTH = (torch.float64, torch.float32)


def planter(bugs: list[Bug]) -> Callable[..., Callable[[Make], Make]]:
    """A decorator ``@plant(kind, about)`` that puts a bug, named as its function, into `bugs`."""

    def plant(kind: Kind, about: str, dtypes: tuple[torch.dtype, ...] = BOTH) -> Callable[[Make], Make]:
        def register(make: Make) -> Make:
            bugs.append(Bug(make.__name__, kind, about, make, dtypes))
            return make

        return register

    return plant


def draw(dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, the same in every dtype but for rounding."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def spread(dtype: torch.dtype, *shape: int, low: float = -2.0, high: float = 2.0, seed: int = 0) -> Tensor:
    """Uniform numbers in [low, high)."""
    generator = torch.Generator().manual_seed(2000 + seed)
    return (low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)).to(dtype)


def custom(
    forward: Callable[..., Tensor],
    backward: Callable[..., Any],
    push: Callable[..., Tensor] | None = None,
    *,
    vmap: bool = True,
) -> Callable[..., Tensor]:
    """An operation with a derivative written by hand.

    Args:
        forward: ``(*inputs) -> output``.
        backward: ``(g, output, *inputs)`` -> a gradient for each input, or the one gradient.
        push: ``(tangents, output, *inputs) -> tangent of the output``; without it there is no forward mode.
        vmap: whether the operation may be batched by `torch.vmap`.
    """

    class Operation(torch.autograd.Function):
        generate_vmap_rule = vmap

        @staticmethod
        def forward(*inputs: Tensor) -> Tensor:
            return forward(*inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            ctx.save_for_backward(output, *inputs)
            ctx.save_for_forward(output, *inputs)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Any:
            return backward(g, *ctx.saved_tensors)

        if push is not None:

            @staticmethod
            def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
                return push(tangents, *ctx.saved_tensors)

    return Operation.apply
