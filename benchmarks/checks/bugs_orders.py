"""Planted bugs of the second order, of forward mode, of batched (vmapped) calls."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.checks.bug import Bug, Program
from benchmarks.checks.planting import custom, draw, planter

BUGS: list[Bug] = []
plant = planter(BUGS)


@plant("second order", "the input is saved detached: the gradient is right, its derivative lacks a term")
def saved_detached(dtype, planted):
    def backward(g, _, x):
        return g * 3 * (x.detach() if planted else x) ** 2

    return Program(custom(lambda x: x**3, backward), (draw(dtype, 4, 3),))


@plant("second order", "the backward pass runs under no_grad, although it is said to be differentiable")
def backward_under_no_grad(dtype, planted):
    def backward(g, y, x):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not planted):
            slope = (1 - y * y) * x.cos()
        return g * slope

    return Program(custom(lambda x: x.sin().tanh(), backward, vmap=False), (draw(dtype, 4, 3),))


class _CubeSlope(torch.autograd.Function):
    """The backward pass of a cube, with a derivative of its own."""

    @staticmethod
    def forward(ctx, g, x, factor):
        ctx.save_for_backward(g, x)
        ctx.factor = factor
        return 3 * g * x * x

    @staticmethod
    def backward(ctx, v):
        g, x = ctx.saved_tensors
        return 3 * v * x * x, ctx.factor * v * g * x, None


@plant("second order", "a double backward written by hand: 3 g x instead of 6 g x")
def double_backward_factor(dtype, planted):
    def backward(g, _, x):
        return _CubeSlope.apply(g, x, 3.0 if planted else 6.0)

    return Program(custom(lambda x: x**3, backward, vmap=False), (draw(dtype, 3, 4),))


class _SigmoidSlope(torch.autograd.Function):
    """The backward pass of a sigmoid, with a derivative of its own."""

    @staticmethod
    def forward(ctx, g, y, planted):
        ctx.save_for_backward(g, y)
        ctx.planted = planted
        return g * y * (1 - y)

    @staticmethod
    def backward(ctx, v):
        g, y = ctx.saved_tensors
        return (torch.zeros_like(g) if ctx.planted else v * y * (1 - y)), v * g * (1 - 2 * y), None


@plant("second order", "a double backward which forgets that the gradient depends on the cotangent")
def double_backward_cotangent(dtype, planted):
    function = custom(torch.sigmoid, lambda g, y, _: _SigmoidSlope.apply(g, y, planted), vmap=False)
    return Program(function, (draw(dtype, 3, 4),))


@plant("second order", "a mixed second derivative is lost: the other factor is read through .data")
def mixed_derivative_lost(dtype, planted):
    def backward(g, _, a, b):
        return g * a.cos() * (b.data if planted else b), g * a.sin()

    return Program(custom(lambda a, b: a.sin() * b, backward), (draw(dtype, 4, 3), draw(dtype, 4, 3, seed=1)))


class GradientPenalty(nn.Module):
    """A norm of the gradient of a small network, as a loss of its parameters."""

    def __init__(self, dtype: torch.dtype, planted: bool) -> None:
        super().__init__()
        self.planted = planted
        self.weight = nn.Parameter(draw(dtype, 4, 3, seed=1))
        self.last = nn.Parameter(draw(dtype, 4, seed=2))

    def forward(self, x):
        hidden = torch.tanh(x @ self.weight.mT)
        slope = (1 - (hidden.detach() if self.planted else hidden) ** 2) * self.last
        return (slope @ self.weight).square().sum(1)


@plant("cut graph", "a gradient penalty whose slope is computed from detached activations")
def penalty_detached(dtype, planted):
    return Program(GradientPenalty(dtype, planted), (draw(dtype, 5, 3),))


@plant("forward mode", "jvp of sin: the tangent is multiplied by -cos")
def forward_sign(dtype, planted):
    sign = -1 if planted else 1
    function = custom(torch.sin, lambda g, _, x: g * x.cos(), lambda t, _, x: sign * t[0] * x.cos())
    return Program(function, (draw(dtype, 4, 3),))


@plant("forward mode", "jvp of a matrix product: the tangent of the second factor is forgotten")
def forward_second_factor(dtype, planted):
    def push(t, _, a, b):
        return t[0] @ b + (0 * (a @ t[1]) if planted else a @ t[1])

    function = custom(lambda a, b: a @ b, lambda g, _, a, b: (g @ b.mT, a.mT @ g), push)
    return Program(function, (draw(dtype, 3, 4), draw(dtype, 4, 2, seed=1)))


@plant("forward mode", "jvp applies the transposed Jacobian")
def forward_transposed(dtype, planted):
    m = draw(dtype, 4, 4, seed=3)
    function = custom(lambda x: x.exp() @ m, lambda g, _, x: (g @ m.mT) * x.exp(), lambda t, _, x: (
        (t[0] * x.exp()) @ (m.mT if planted else m)
    ))  # fmt: skip
    return Program(function, (draw(dtype, 3, 4),))


@plant("forward mode", "jvp of the hyperbolic tangent misses the square")
def forward_tanh(dtype, planted):
    def push(t, y, _):
        return t[0] * (1 - y if planted else 1 - y * y)

    return Program(custom(torch.tanh, lambda g, y, _: g * (1 - y * y), push), (draw(dtype, 4, 3),))


class _OwnBatching(torch.autograd.Function):
    """Row norms with a vmap rule written by hand."""

    @staticmethod
    def forward(x: Tensor, planted: bool) -> Tensor:
        return x.square().sum(-1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.planted = inputs[1]

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * g[..., None] * x, None

    @staticmethod
    def vmap(info, in_dims, x, planted):
        x = x if planted else x.movedim(in_dims[0], 0)
        return _OwnBatching.apply(x, planted), 0


@plant("vmap", "the vmap rule takes the mapped axis to be the first one, wherever it is")
def vmap_first_axis(dtype, planted):
    return Program(lambda x: _OwnBatching.apply(x, planted), (draw(dtype, 4, 4, 4),))


class _SharedMean(torch.autograd.Function):
    """Centering over the first axis of a sample, with a vmap rule written by hand."""

    @staticmethod
    def forward(x: Tensor, planted: bool, axis: int) -> Tensor:
        return x - x.mean(axis, keepdim=True)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.planted, ctx.axis = inputs

    @staticmethod
    def backward(ctx, g):
        return g - g.mean(ctx.axis, keepdim=True), None, None

    @staticmethod
    def vmap(info, in_dims, x, planted, axis):
        return _SharedMean.apply(x.movedim(in_dims[0], 0), planted, 0 if planted else axis + 1), 0


@plant("vmap", "the vmap rule averages over the mapped axis: samples leak into each other")
def vmap_leaking_mean(dtype, planted):
    return Program(lambda x: _SharedMean.apply(x, planted, 0), (draw(dtype, 4, 3),))


class _VmapOfSome(torch.autograd.Function):
    """A product whose vmap rule should cope with a factor that is not mapped."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, planted: bool) -> Tensor:
        return a * b

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return g * b, g * a, None

    @staticmethod
    def vmap(info, in_dims, a, b, planted):
        if planted:
            a, b = (t if d is None else t.select(d, 0).expand(info.batch_size, *t.select(d, 0).shape) for t, d in zip(
                (a, b), in_dims, strict=False))  # fmt: skip
        else:
            a, b = (t if d is None else t.movedim(d, 0) for t, d in zip((a, b), in_dims, strict=False))
        return _VmapOfSome.apply(a, b, planted), 0


@plant("vmap", "the vmap rule computes the first sample and repeats it")
def vmap_first_sample(dtype, planted):
    return Program(lambda a, b: _VmapOfSome.apply(a, b, planted), (draw(dtype, 3, 4), draw(dtype, 3, 4, seed=1)))
