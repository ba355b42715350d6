"""Layer normalization and softmax, whose second derivatives are written out (what does not depend on the vector is kept).

With ``x̂ = (x - mean) r`` the derivative of x̂ by x is the symmetric ``P h = r (h - mean(h) - x̂ mean(h x̂))``, and the derivative
of ``<a, P h>`` by x is ``-P(r (mean(h x̂) a + mean(a x̂) h)) - r x̂ mean(h P a)``. Softmax s has the symmetric derivative
``S h = s (h - <s, h>)``; that of ``<a, S g>`` by x is ``m - s <1, m>`` with ``m = (S a) (g - <s, g>)``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from hesse.autodiff.ops_common import SMALL, differentiates_again, may_swap


class LayerNorm(Function):
    """``layer_norm(x, shape, weight, bias, eps)``; its gradient is `LayerNormGradient`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: list[int], eps: float) -> Tensor:
        y, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.shape, ctx.eps = shape, eps
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        mask = ctx.needs_input_grad[:3]
        if differentiates_again():
            return *LayerNormGradient.apply(grads[0], x, weight, bias, mean, rstd, (ctx.shape, ctx.eps, mask)), None, None
        return *_pull_norm(grads[0], x, (ctx.shape, mean, rstd), weight, bias, mask), None, None


class LayerNormGradient(Function):
    """The gradient of a layer normalization by x, weight and bias, as a function of the output's cotangent, x and weight."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor, options: Any
    ) -> Any:
        ctx.save_for_backward(g, x, weight, mean, rstd)
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.eps, mask = options
        return _pull_norm(g, x, (ctx.shape, mean, rstd), weight, bias, mask)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        a, B, c = grads
        g, x, weight, mean, rstd = ctx.saved_tensors
        x_hat, r, h, h_slope = _fixed_parts(ctx, g, x, weight, rstd)
        axes = tuple(range(-len(ctx.shape), 0))
        samples = tuple(range(x.ndim - len(ctx.shape)))
        need_g, need_x, need_weight = ctx.needs_input_grad[:3]
        to_g = to_x = to_weight = None
        if a is not None:
            Pa = _project(ctx, a, x, (mean, rstd, x_hat, r))
            to_g = Pa if weight is None else weight * Pa
            gPa = g * Pa
            if need_weight:
                to_weight = gPa.sum(samples) if samples else gPa
            if need_x:
                hPa = (gPa if weight is None else gPa * weight).mean(axes, keepdim=True)
                a_slope = (a * x_hat).mean(axes, keepdim=True)
                inner = torch.addcmul(a * (-r * h_slope), h, -r * a_slope)
                inner = inner if B is None else torch.addcmul(inner, g, B)
                to_x = _project(ctx, inner, x, (mean, rstd, x_hat, r)) - x_hat * (r * hPa)
        elif B is not None and need_x:
            to_x = _project(ctx, B * g, x, (mean, rstd, x_hat, r))
        if need_g and (B is not None or c is not None):
            for part in (c, None if B is None else x_hat * B):
                if part is not None:
                    to_g = part.expand_as(g) if to_g is None else to_g + part
        return to_g if need_g else None, to_x, to_weight, None, None, None, None


def _pull_norm(g: Tensor, x: Tensor, stats: Any, weight: Tensor | None, bias: Tensor | None, mask: Any) -> Any:
    return torch.ops.aten.native_layer_norm_backward(g, x, *stats, weight, bias, list(mask))


def _project(ctx: Any, a: Tensor, x: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
    """``P a``: by the fused op, unless it is to be differentiated (from the third derivative on, PyTorch's is wrong)."""
    mean, rstd, x_hat, r = parts
    if not torch.is_grad_enabled():
        return _pull_norm(a, x, (ctx.shape, mean, rstd), None, None, (True, False, False))[0]
    axes = tuple(range(-len(ctx.shape), 0))
    return r * (a - a.mean(axes, keepdim=True) - x_hat * (a * x_hat).mean(axes, keepdim=True))


def _fixed_parts(ctx: Any, g: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor) -> tuple[Tensor, ...]:
    """``x̂, r, h = weight g, mean(h x̂)``; kept where nothing is followed, differentiable where something is."""
    axes = tuple(range(-len(ctx.shape), 0))
    follow = torch.is_grad_enabled()
    if not follow and hasattr(ctx, "fixed"):
        return ctx.fixed
    if follow:
        r = (x.var(axes, correction=0, keepdim=True) + ctx.eps).rsqrt()
        x_hat = (x - x.mean(axes, keepdim=True)) * r
    else:
        r, x_hat = rstd, torch.native_layer_norm(x, ctx.shape, None, None, ctx.eps)[0]
    h = g if weight is None else g * weight
    parts = (x_hat, r, h, (h * x_hat).mean(axes, keepdim=True))
    if not follow and not torch._C._are_functorch_transforms_active():
        ctx.fixed = parts
    return parts


class Softmax(Function):
    """``softmax(x, dim)``; its gradient is `SoftmaxGradient`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        s = torch.softmax(x, dim)
        ctx.save_for_backward(x, s)
        ctx.dim = dim
        return s

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, s = ctx.saved_tensors
        if differentiates_again():
            return SoftmaxGradient.apply(grads[0], x, s.detach(), ctx.dim), None
        return _pull_softmax(grads[0], s, ctx.dim), None


class SoftmaxGradient(Function):
    """``S g``, a function of g and x."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, s: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(g, x, s)
        ctx.dim = dim
        return _pull_softmax(g, s, dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (a,), (g, x, s), dim = grads, ctx.saved_tensors, ctx.dim
        follow = torch.is_grad_enabled()
        if follow:
            s = torch.softmax(x, dim)
        Sa = _pull_softmax(a, s, dim)
        if not ctx.needs_input_grad[1]:
            return Sa, None, None, None
        if follow or torch._C._are_functorch_transforms_active():
            centered = g - (s * g).sum(dim, keepdim=True)
        else:
            if not hasattr(ctx, "centered"):
                ctx.centered = g - (s * g).sum(dim, keepdim=True)
            centered = ctx.centered
        m = Sa * centered
        return Sa, torch.addcmul(m, s, m.sum(dim, keepdim=True), value=-1), None, None


def _pull_softmax(g: Tensor, s: Tensor, dim: int) -> Tensor:
    return torch.ops.aten._softmax_backward_data(g, s, dim, s.dtype)


def layer_norm(
    x: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn_enable: bool = True
) -> Tensor | None:
    """What stands for ``F.layer_norm``; None where it does not fit."""
    shape = [normalized_shape] if isinstance(normalized_shape, int) else list(normalized_shape)
    if not may_swap(*(t for t in (x, weight, bias) if t is not None)) or x.numel() < SMALL:
        return None
    if list(x.shape[x.ndim - len(shape) :]) != shape or any(list(t.shape) != shape for t in (weight, bias) if t is not None):
        return None
    return LayerNorm.apply(x, weight, bias, shape, eps)


def softmax(x: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor | None:
    """What stands for ``F.softmax``; None where it does not fit."""
    if not isinstance(dim, int) or dtype is not None or not may_swap(x) or x.numel() < SMALL:
        return None
    return Softmax.apply(x, dim) if -x.ndim <= dim < x.ndim else None


def softmax_of_tensor(x: Any, dim: Any = None, dtype: Any = None) -> Tensor | None:
    """What stands for ``torch.softmax``; None where it does not fit."""
    return softmax(x, dim, dtype=dtype)
