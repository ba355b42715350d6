"""Convolutions: an element on a window of places."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from hesse.rules.sparsity.forms import Call, Grouped, Link, Pairs, shared, sparsity_rules, whole


def taps(inputs: Sequence[int], outputs: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
         dilation: Sequence[int], unused: Tensor | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The pairs of places ``output * stride - padding + tap * dilation == input`` that exist, as numbers in row-major order;
    without those of taps that are `unused` (bools, in the shape of the kernel)."""
    nothing = torch.zeros(0, dtype=torch.int64)
    found_in, found_out = [nothing], [nothing]
    for tap in itertools.product(*(range(k) for k in kernel)):
        if unused is not None and bool(unused[tap]):
            continue
        axes_in, axes_out = [], []
        for axis, t in enumerate(tap):
            out = torch.arange(outputs[axis])
            place = out * stride[axis] - padding[axis] + t * dilation[axis]
            inside = (place >= 0) & (place < inputs[axis])
            axes_in.append(place[inside])
            axes_out.append(out[inside])
        found_in.append(_numbers(axes_in, inputs))
        found_out.append(_numbers(axes_out, outputs))
    return torch.cat(found_in), torch.cat(found_out)


def _numbers(axes: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    total = torch.zeros((), dtype=torch.int64)
    for axis, size in zip(axes, sizes, strict=True):
        total = total.unsqueeze(-1) * size + axis
    return total.flatten()


def sizes_of(value: Sequence[int], count: int) -> list[int]:
    """One size an axis, where one may stand for all."""
    return list(value) * count if len(value) == 1 else list(value)


@sparsity_rules.register("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution", "convolution_overrideable")
def convolution(call: Call) -> list[Link]:
    """A place of a channel on the window in all channels of its group, on its filter, and on its bias."""
    x, weight, *bias = call.operands
    y, groups = call.outputs[0], call["groups"]
    channel = shared(y.shape, [1])
    links: list[Link] = [(0, x, _convolved(x, y, call))] if weight.numel() else []
    if call.given.get("transposed"):  # a filter of an output channel is spread over the input channels of its group
        per = weight.shape[1]
        group = torch.arange(weight.shape[0]) // max(1, weight.shape[0] // groups)
        of_weight = (group.view(-1, 1) * per + torch.arange(per)).view(weight.shape[:2] + (1,) * (weight.ndim - 2))
        links.append((0, weight, Grouped(of_weight.expand(weight.shape), channel)))
    else:
        links.append((0, weight, Grouped(shared(weight.shape, [0]), channel)))
    return links + [(0, t, Grouped(torch.arange(t.numel()), channel)) for t in bias]


def _convolved(x: Tensor, y: Tensor, call: Call, *, swapped: bool = False) -> Pairs:
    """How an image `y` depends on an image `x` through a convolution; `swapped`: through its transpose."""
    weight, count, groups = call["weight"], x.ndim - 2, call["groups"]
    stride, padding, dilation = (sizes_of(call[name], count) for name in ("stride", "padding", "dilation"))
    kernel, zeros = weight.shape[2:], call.zeros(weight)
    unused = None if zeros is None else zeros.flatten(0, 1).all(0)
    if bool(call.given.get("transposed")) != swapped:
        outs, ins = taps(y.shape[2:], x.shape[2:], kernel, stride, padding, dilation, unused)
    else:
        ins, outs = taps(x.shape[2:], y.shape[2:], kernel, stride, padding, dilation, unused)
    of_x, size_x = _by_group(x, groups)
    of_y, size_y = _by_group(y, groups)
    batches = torch.arange(x.shape[0] * groups).unsqueeze(-1)
    return Pairs(of_x, (batches * size_x + ins).flatten(), (batches * size_y + outs).flatten(), of_y)


def _by_group(image: Tensor, groups: int) -> tuple[Tensor, int]:
    """Numbers in which the channels of a group share a place: by sample, group and place."""
    samples, channels = image.shape[:2]
    size = image[0, 0].numel() if samples and channels else 0
    group = torch.arange(channels) // max(1, channels // groups)
    number = (torch.arange(samples).view(-1, 1) * groups + group).unsqueeze(-1) * size + torch.arange(size)
    return number.view(image.shape), size


@sparsity_rules.register("convolution_backward")
def convolution_backward(call: Call) -> list[Link]:
    """The gradient of the input is a transposed convolution of the one that arrives; those of weight and bias are sums."""
    grad, x, weight = call["grad_output"], call["input"], call["weight"]
    links, number = list[Link](), 0
    for which, wanted in enumerate(call["output_mask"]):
        if not wanted:
            continue
        y = call.outputs[number]
        if which == 0:
            links += [(number, grad, _convolved(grad, y, call, swapped=True)), (number, weight, whole(weight, y))]
        elif which == 1:
            transposed = call["transposed"]
            inner, outer = (grad, x) if transposed else (x, grad)
            links.append((number, outer, Grouped(shared(outer.shape, [1]), shared(y.shape, [0]))))
            links.append((number, inner, whole(inner, y)))
        else:
            links.append((number, grad, Grouped(shared(grad.shape, [1]), torch.arange(y.numel()))))
        number += 1
    return links
