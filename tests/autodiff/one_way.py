"""Functions whose backward gives rows of a Jacobian and cannot be differentiated by its cotangent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()


class Once(Sine):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grads[0] * ctx.saved_tensors[0].cos()


class Unrecorded(Sine):
    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        with torch.no_grad():
            return grads[0] * ctx.saved_tensors[0].cos()


class Detached(Sine):
    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].detach() * ctx.saved_tensors[0].cos()


class InNumpy(Sine):
    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.from_numpy(grads[0].detach().numpy() * np.cos(ctx.saved_tensors[0].detach().numpy()))


class Clipped(torch.autograd.Function):
    """A backward that is not linear."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 3 * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return (3 * grads[0]).clamp(-1, 1)


@torch.library.custom_op("hesse_tests::one_way_sine", mutates_args=())
def one_way_sine(x: Tensor) -> Tensor:
    return x.sin()


@torch.library.custom_op("hesse_tests::one_way_slope", mutates_args=())
def one_way_slope(g: Tensor, x: Tensor) -> Tensor:
    return g * x.cos()


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


one_way_sine.register_autograd(lambda ctx, g: one_way_slope(g, ctx.saved_tensors[0]), setup_context=_save)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "once": Once.apply,
    "no_grad": Unrecorded.apply,
    "detach": Detached.apply,
    "numpy": InNumpy.apply,
    "clipped": Clipped.apply,
    "custom op": one_way_sine,
}
NAMES = {"once": "Once", "no_grad": "Unrecorded", "detach": "Detached", "numpy": "InNumpy", "clipped": "Clipped",
         "custom op": "one_way_sine"}  # fmt: skip
