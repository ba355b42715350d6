"""ReLU, max-pooling and GELU, whose slopes are computed once for all products.

PyTorch's own graph of a piecewise linear op's gradient carries a zero of full size back to the op's input; that of GELU
evaluates first and second derivative anew in every product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from hesse.autodiff.ops_common import SMALL, differentiates_again, may_swap


class Relu(Function):
    """``relu(x)``; its gradient depends on the sign of x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.relu(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grads[0], y.detach(), 0)


class MaxPool2d(Function):
    """``max_pool2d(x)``; its gradient depends on the places of the largest elements alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, options: tuple[Any, ...]) -> Tensor:
        y, places = torch.ops.aten.max_pool2d_with_indices(x, *options)
        ctx.save_for_backward(x, places)
        ctx.options = options
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, places = ctx.saved_tensors
        return torch.ops.aten.max_pool2d_with_indices_backward(grads[0], x.detach(), *ctx.options, places), None


class Slopes:
    """The first and second derivative of an elementwise function at x, kept once they were needed.

    Args:
        function: the function.
        closed: order -> the derivative in closed form, where there is a cheap one.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], closed: dict[int, Callable[[Tensor], Tensor]]) -> None:
        self.function, self._closed = function, closed
        self._kept: dict[int, Tensor] = {}

    def at(self, x: Tensor, order: int) -> Tensor:
        """The derivative of an order; differentiable by x where gradients are followed."""
        if torch.is_grad_enabled():
            return self._derivative(x, order, follow=True)
        if order not in self._kept:
            if order in self._closed:
                self._kept[order] = self._closed[order](x)
            else:
                with torch.enable_grad():
                    self._kept[order] = self._derivative(x.detach().requires_grad_(), order, follow=False)
        return self._kept[order]

    def _derivative(self, x: Tensor, order: int, *, follow: bool) -> Tensor:
        y = self.function(x)
        for k in range(order):
            (y,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=follow or k + 1 < order)
        return y


def _second_of_gelu(x: Tensor) -> Tensor:
    """``φ(x) (2 - x²)``, φ the normal density."""
    square = x * x
    return torch.exp(square * -0.5).mul_(1 / math.sqrt(2 * math.pi)).mul_(2 - square)


class Elementwise(Function):
    """A smooth function of every element; its gradient is `ElementwiseGradient`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slopes: Slopes) -> Tensor:
        ctx.save_for_backward(x)
        ctx.slopes = slopes
        return slopes.function(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        if differentiates_again():
            return ElementwiseGradient.apply(grads[0], x, ctx.slopes), None
        return grads[0] * ctx.slopes.at(x, 1), None


class ElementwiseGradient(Function):
    """``g f'(x)``."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, slopes: Slopes) -> Tensor:
        ctx.save_for_backward(g, x)
        ctx.slopes = slopes
        return g * slopes.at(x, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (a,), (g, x) = grads, ctx.saved_tensors
        to_g = a * ctx.slopes.at(x, 1) if ctx.needs_input_grad[0] else None
        to_x = a * _bent(ctx, g, x) if ctx.needs_input_grad[1] else None
        return to_g, to_x, None


def _bent(ctx: Any, g: Tensor, x: Tensor) -> Tensor:
    """``g f''(x)``, kept where nothing is followed."""
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        return g * ctx.slopes.at(x, 2)
    if not hasattr(ctx, "bent"):
        ctx.bent = g * ctx.slopes.at(x, 2)
    return ctx.bent


def relu(x: Any, inplace: bool = False) -> Tensor | None:
    """What stands for ``F.relu``; None where it does not fit."""
    return Relu.apply(x) if not inplace and may_swap(x) and x.numel() >= SMALL else None


def max_pool2d(
    x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:  # fmt: skip
    """What stands for ``F.max_pool2d``; None where it does not fit."""
    if return_indices or not may_swap(x) or x.numel() < SMALL:
        return None
    pairs = [[n, n] if isinstance(n, int) else list(n or ()) for n in (kernel_size, stride or (), padding, dilation)]
    return MaxPool2d.apply(x, (*pairs, bool(ceil_mode)))


def gelu(x: Any, approximate: str = "none") -> Tensor | None:
    """What stands for ``F.gelu``; None where it does not fit."""
    if approximate not in ("none", "tanh") or not may_swap(x) or x.numel() < SMALL:
        return None

    def first(x: Tensor) -> Tensor:
        return torch.ops.aten.gelu_backward(torch.ones_like(x), x, approximate=approximate)

    closed = {1: first, 2: _second_of_gelu} if approximate == "none" else {1: first}
    return Elementwise.apply(x, Slopes(lambda x: F.gelu(x, approximate=approximate), closed))
