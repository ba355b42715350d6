"""Planted bugs in what a backward pass takes its cotangent to be: its values, its layout, its owner."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from benchmarks.checks.bug import Bug, Program
from benchmarks.checks.planting import custom, draw, planter

BUGS: list[Bug] = []
plant = planter(BUGS)


def as_if_contiguous(g: Tensor) -> Tensor:
    """What a kernel reads which is given a pointer and a shape: wrong, and in bounds, for any other layout."""
    size = g.untyped_storage().nbytes() // g.element_size() - g.storage_offset()
    flat = torch.as_strided(g, (size,), (1,), g.storage_offset())
    return flat[torch.arange(g.numel()) % max(size, 1)].view(g.shape)


@plant("cotangent ignored", "a loss that takes its cotangent to be one")
def loss_without_cotangent(dtype, planted):
    def backward(g, _, x, y):
        slope = 2 * (x - y) / x.numel()
        slope = slope if planted else slope * g
        return slope, -slope

    return Program(custom(lambda x, y: (x - y).square().mean(), backward), (draw(dtype, 3, 4), draw(dtype, 3, 4, seed=1)))


@plant("cotangent ignored", "a sum over rows whose backward pass returns the derivative alone")
def rows_without_cotangent(dtype, planted):
    function = custom(lambda x: x.sin().sum(1), lambda g, _, x: x.cos() * (1.0 if planted else g[:, None]))
    return Program(function, (draw(dtype, 3, 4),))


@plant("cotangent ignored", "the second of two outputs is left out of the backward pass")
def second_output_ignored(dtype, planted):
    class Polar(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            r, angle = torch.hypot(a, b), torch.atan2(b, a)
            ctx.save_for_backward(a, b, r)
            return r, angle

        @staticmethod
        def backward(ctx, g, h):
            a, b, r = ctx.saved_tensors
            h = 0 * h if planted else h
            return g * a / r - h * b / r**2, g * b / r + h * a / r**2

    return Program(Polar.apply, (draw(dtype, 3, 4), draw(dtype, 3, 4, seed=1)))


@plant("cotangent nonlinear", "gradients are clipped to [-1, 1] inside of the backward pass")
def clipped_cotangent(dtype, planted):
    function = custom(torch.sin, lambda g, _, x: (g.clamp(-1, 1) if planted else g) * x.cos())
    return Program(function, (draw(dtype, 4, 3),))


@plant("cotangent nonlinear", "only positive cotangents are passed on")
def guided_cotangent(dtype, planted):
    function = custom(torch.tanh, lambda g, y, _: (g.relu() if planted else g) * (1 - y * y))
    return Program(function, (draw(dtype, 4, 3),))


@plant("cotangent nonlinear", "cotangents below 1e-3 are taken for zero")
def small_cotangents_dropped(dtype, planted):
    def backward(g, _, x):
        return (g * (g.abs() > 1e-3) if planted else g) * 2 * x

    return Program(custom(lambda x: x * x, backward), (draw(dtype, 4, 3),))


@plant("cotangent nonlinear", "the cotangent is divided by its norm")
def normalized_cotangent(dtype, planted):
    def backward(g, y, _):
        g = g / (g.norm() + 1e-12) if planted else g
        return g * y

    return Program(custom(torch.exp, backward), (draw(dtype, 3, 3),))


@plant("cotangent nonlinear", "a cotangent is rounded to steps of 1/256, as if it were quantized")
def quantized_cotangent(dtype, planted):
    def backward(g, _, x):
        return ((g * 256).round() / 256 if planted else g) * x.cos()

    return Program(custom(torch.sin, backward), (draw(dtype, 4, 3),))


@plant("cotangent layout", "the cotangent is read as if it were contiguous")
def cotangent_pointer(dtype, planted):
    def backward(g, y, _):
        return (as_if_contiguous(g) if planted else g) * (1 - y * y)

    return Program(custom(torch.tanh, backward, vmap=False), (draw(dtype, 3, 4),))


@plant("cotangent layout", "view(-1) of the cotangent, which only a contiguous one allows")
def cotangent_view(dtype, planted):
    def backward(g, _, x):
        flat = g.view(-1) if planted else g.reshape(-1)
        return (flat * x.reshape(-1).cos()).view(x.shape)

    return Program(custom(torch.sin, backward), (draw(dtype, 3, 4),))


@plant("cotangent layout", "an expanded cotangent, as that of a sum, is read beyond its one element")
def cotangent_expanded(dtype, planted):
    def backward(g, _, x):
        if planted and g.numel() > 1 and 0 in g.stride():
            g = torch.zeros_like(g.contiguous()).flatten().index_fill(0, torch.tensor([0]), 1.0).view(g.shape) * g
        return g * 2 * x

    return Program(custom(lambda x: x * x, backward, vmap=False), (draw(dtype, 3, 4),))


@plant("cotangent layout", "the offset of the cotangent into its storage is forgotten")
def cotangent_offset(dtype, planted):
    def backward(g, y, _):
        return (torch.as_strided(g, g.shape, g.stride(), 0) if planted else g) * y

    return Program(custom(torch.exp, backward, vmap=False), (draw(dtype, 3, 4),))


@plant("cotangent layout", "a cotangent of images that is channels-last is read as channels-first")
def cotangent_channels_last(dtype, planted):
    def backward(g, _, x):
        last = g.is_contiguous(memory_format=torch.channels_last) and not g.is_contiguous()
        return (as_if_contiguous(g) if planted and last else g) * (x > 0)

    return Program(custom(torch.relu, backward, vmap=False), (draw(dtype, 2, 3, 4, 2),))


@plant("input layout", "the saved input is read as if it were contiguous")
def input_pointer(dtype, planted):
    def backward(g, _, x):
        return g * (as_if_contiguous(x) if planted else x).cos()

    return Program(custom(torch.sin, backward, vmap=False), (draw(dtype, 3, 4),))


@plant("input layout", "the weight of a linear layer is read row by row, also where it is a transposed view")
def weight_pointer(dtype, planted):
    def backward(g, _, x, w):
        w = as_if_contiguous(w) if planted else w
        return g @ w, g.mT @ x

    return Program(custom(lambda x, w: x @ w.mT, backward, vmap=False), (draw(dtype, 3, 4), draw(dtype, 2, 4, seed=1)))


@plant("input layout", "forward and backward read a channels-last image as channels-first")
def image_channels_last(dtype, planted):
    def read(x):
        last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        return as_if_contiguous(x) if planted and last else x

    function = custom(lambda x: read(x) ** 2, lambda g, _, x: 2 * g * read(x), vmap=False)
    return Program(function, (draw(dtype, 2, 3, 4, 2),))


@plant("input layout", "an expanded input: the kernel writes one gradient for all copies")
def input_expanded(dtype, planted):
    def backward(g, _, x):
        slope = g * x.cos()
        if planted and 0 in x.stride() and x.numel() > 1:
            slope = slope * 0 + slope.flatten()[0]
        return slope

    return Program(custom(torch.sin, backward, vmap=False), (draw(dtype, 3, 4),))


@plant("cotangent changed", "the cotangent is multiplied in place and returned as the gradient")
def cotangent_in_place(dtype, planted):
    def backward(g, _, x):
        return g.data.mul_(x.cos()) if planted else g * x.cos()

    return Program(custom(torch.sin, backward, vmap=False), (draw(dtype, 4, 3),))


@plant("cotangent changed", "the cotangent is scaled by 1/n in place, used, and not scaled back")
def cotangent_scaled(dtype, planted):
    def backward(g, _, x):
        rows = len(x)
        if planted:
            g.data.div_(rows)
            return g * 2 * x
        return g / rows * 2 * x

    return Program(custom(lambda x: x * x / len(x), backward, vmap=False), (draw(dtype, 4, 3),))


@plant("cotangent changed", "an in-place ReLU zeroes the cotangent where x < 0, which the other branch still needs")
def cotangent_masked(dtype, planted):
    def backward(g, _, x):
        if planted:
            g.data[x <= 0] = 0
            return g
        return g * (x > 0)

    relu = custom(torch.relu, backward, vmap=False)

    def f(x):
        y = x.sin()
        return relu(y), y

    return Program(f, (draw(dtype, 4, 3),))


@plant("crash", "a null pointer is followed where the cotangent is not contiguous")
def null_pointer(dtype, planted):
    def backward(g, y, _):
        if planted and not g.is_contiguous():
            ctypes.string_at(0)
        return g * y

    return Program(custom(torch.exp, backward, vmap=False), (draw(dtype, 3, 4),))


@plant("crash", "the process is ended by an assertion of the kernel in an odd number of rows")
def kernel_assertion(dtype, planted):
    def backward(g, y, _):
        if planted and len(y) % 2:
            ctypes.CDLL(None).abort()
        return g * (1 - y * y)

    return Program(custom(torch.tanh, backward, vmap=False), (draw(dtype, 4, 3),))


@plant("crash", "the backward pass raises an IndexError for a single row")
def error_for_one_row(dtype, planted):
    def backward(g, _, x):
        spacing = x[1] - x[0] if planted or len(x) > 1 else x[0] * 0
        return g * x.cos() + 0 * spacing

    return Program(custom(torch.sin, backward, vmap=False), (draw(dtype, 4, 3),))


@plant("crash", "an error in the second backward pass: what was saved is deleted after the first")
def deleted_after_use(dtype, planted):
    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            ctx.slope = x.cos()
            return x.sin()

        @staticmethod
        def backward(ctx, g):
            if planted:
                slope = ctx.slope
                del ctx.slope
                return g * slope
            return g * ctx.saved_tensors[0].cos()

    return Program(Sine.apply, (draw(dtype, 4, 3),))
