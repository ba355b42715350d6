"""Convolution whose second derivative is computed by convolutions alone, and only as far as it is asked for.

PyTorch's own second derivative also computes that of the image, and runs the weight's as a convolution with exchanged batch and
channel axes, for which there is no fast kernel. A convolution is bilinear in input and weight, so that all of its second
derivatives are convolutions and their adjoints with one factor replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from hesse.autodiff.ops_common import differentiates_again, may_swap


class Options(NamedTuple):
    """Everything that `torch.convolution` is told besides tensors, one number a spatial axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


class Convolution(Function):
    """``convolution(x, weight, bias)``; its gradient is `ConvolutionGradient`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options, ctx.bias = options, None if bias is None else bias.shape[0]
        return torch.convolution(x, weight, bias, *options)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (g,), (x, weight) = grads, ctx.saved_tensors
        mask = ctx.needs_input_grad[:3]
        return *_pull(g, x, weight, ctx.bias, ctx.options, mask), None


class ConvolutionGradient(Function):
    """The gradient of a convolution, linear in its output's cotangent g, in x and in the weight, each alone."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, bias: int | None, options: Options, mask: tuple[bool, bool, bool]
    ) -> Any:
        ctx.save_for_backward(g, x, weight)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return _backward(g, x, weight, bias, options, mask)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        a, B, c = grads
        (g, x, weight), options = ctx.saved_tensors, ctx.options
        need_g, need_x, need_weight = ctx.needs_input_grad[:3]
        to_g = _push((a, B, c), x, weight, options) if need_g else None
        to_x = _pull(g, x, B, None, options, (True, False, False))[0] if need_x and B is not None else None
        to_weight = _pull(g, a, weight, None, options, (False, True, False))[1] if need_weight and a is not None else None
        return to_g, to_x, to_weight, None, None, None


def _backward(g: Tensor, x: Tensor, weight: Tensor, bias: int | None, options: Options, mask: tuple[bool, bool, bool]) -> Any:
    return torch.ops.aten.convolution_backward(g, x, weight, None if bias is None else [bias], *options, mask)


def _pull(g: Tensor, x: Tensor, weight: Tensor, bias: int | None, options: Options, mask: tuple[bool, bool, bool]) -> Any:
    """The cotangents of input, weight and bias."""
    backward = ConvolutionGradient.apply if differentiates_again() else _backward
    return backward(g, x, weight, bias, options, mask)


def _push(tangents: tuple[Tensor | None, Tensor | None, Tensor | None], x: Tensor, weight: Tensor, options: Options) -> Any:
    """The tangent of the output, from those of input, weight and bias; None for zero."""
    a, B, c = tangents
    if a is None and B is None:
        return None if c is None else _forward(torch.zeros_like(x), weight, c, options)
    if a is None or B is None:
        return _forward(x if a is None else a, weight if B is None else B, c, options)
    return _forward(a, weight, c, options) + _forward(x, B, None, options)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Any:
    if differentiates_again():
        return Convolution.apply(x, weight, bias, options)
    return torch.convolution(x, weight, bias, *options)


def convolution(axes: int, *, transposed: bool = False) -> Callable[..., Tensor | None]:
    """What stands for ``torch.conv{axes}d`` or ``torch.conv_transpose{axes}d``; it gives None where it does not fit."""

    def swapped(x: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> Tensor | None:
        tensors = (x, weight) if bias is None else (x, weight, bias)
        if not may_swap(*tensors) or x.ndim != axes + 2 or weight.ndim != axes + 2:
            return None
        options = (_transposed if transposed else _ordinary)(weight, *args, **kwargs)
        return None if options is None else Convolution.apply(x, weight, bias, options)

    return swapped


def _ordinary(weight: Tensor, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> Options | None:
    axes = weight.ndim - 2
    dilation = _each(dilation, axes)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if any(length % 2 for length in total) or set(_each(stride, axes)) != {1}:
            return None
        padding = [length // 2 for length in total]
    elif isinstance(padding, str):
        return None
    return Options(_each(stride, axes), _each(padding, axes), dilation, False, (0,) * axes, groups)


def _transposed(
    weight: Tensor, stride: Any = 1, padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1
) -> Options:
    axes = weight.ndim - 2
    return Options(_each(stride, axes), _each(padding, axes), _each(dilation, axes), True, _each(output_padding, axes), groups)


def _each(option: Any, axes: int) -> tuple[int, ...]:
    numbers = (option,) if isinstance(option, int) else tuple(option)
    return numbers * axes if len(numbers) == 1 else numbers
