"""Pooling: a place on a window of places in its own channel; and back."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.rules.sparsity.forms import Call, Grouped, Link, Moved, Pairs, places, shared, sparsity_rules
from hesse.rules.sparsity.windows import sizes_of, taps

_WINDOWS = ("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d")
_SHARES = ("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d")
_PLANES = ("fractional_max_pool2d", "fractional_max_pool3d", "fractional_max_pool2d_backward", "fractional_max_pool3d_backward")
_Windows = tuple[Tensor, Tensor]
"""Places of the image, and of what is pooled from it, in pairs."""


def _axes(call: Call) -> int:
    return int(call.func.overloadpacket.__name__.partition("pool")[2][0])


def _windows(call: Call, image: Tensor, pooled: Tensor) -> _Windows:
    count = _axes(call)
    kernel = sizes_of(call["kernel_size"], count)
    stride = sizes_of(call["stride"] or kernel, count)
    padding, dilation = sizes_of(call["padding"], count), sizes_of(call.given.get("dilation") or [1], count)
    return taps(image.shape[-count:], pooled.shape[-count:], kernel, stride, padding, dilation)


@sparsity_rules.register(*_WINDOWS)
def pooling(call: Call) -> list[Link]:
    """A place on its window."""
    x, y = call["self"], call.outputs[0]
    if (chosen := _chosen(call)) is not None:
        return chosen
    ins, outs = _windows(call, x, y)
    return [(0, x, in_channels(x, y, _axes(call), ins, outs))]


def _chosen(call: Call) -> list[Link] | None:
    """The largest element of each window, where values are taken as they are."""
    x, count = call["self"], _axes(call)
    if len(call.outputs) < 2 or not call.is_fixed(x):
        return None
    y, index = call.outputs[:2]
    planes = shared(y.shape, range(y.ndim - count))
    return [(0, x, Moved(planes * x.shape[-count:].numel() + index.cpu()))]


@sparsity_rules.register(*(f"{name}_backward" for name in _WINDOWS))
def pooling_backward(call: Call) -> list[Link]:
    """A place's gradient on those of the windows that it is in."""
    grad, y = call["grad_output"], call.outputs[0]
    ins, outs = _windows(call, y, grad)
    return [(0, grad, in_channels(grad, y, _axes(call), outs, ins))]


@sparsity_rules.register(*_SHARES)
def adaptive_pooling(call: Call) -> list[Link]:
    """A place on its share of the image."""
    x, y = call["self"], call.outputs[0]
    if (chosen := _chosen(call)) is not None:
        return chosen
    ins, outs = _all_shares(x, y, _axes(call))
    return [(0, x, in_channels(x, y, _axes(call), ins, outs))]


@sparsity_rules.register(*(f"{name}_backward" for name in _SHARES))
def adaptive_pooling_backward(call: Call) -> list[Link]:
    """A place's gradient on those of the shares that it is in."""
    grad, y = call["grad_output"], call.outputs[0]
    ins, outs = _all_shares(y, grad, _axes(call))
    return [(0, grad, in_channels(grad, y, _axes(call), outs, ins))]


def _all_shares(image: Tensor, pooled: Tensor, count: int) -> _Windows:
    ins, outs = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    for n, m in zip(image.shape[-count:], pooled.shape[-count:], strict=True):
        axis_in, axis_out = _shares(n, m)
        ins, outs = (ins.unsqueeze(-1) * n + axis_in).flatten(), (outs.unsqueeze(-1) * m + axis_out).flatten()
    return ins, outs


def _shares(n: int, m: int) -> _Windows:
    """Of n places, those from floor(o n / m) to ceil((o + 1) n / m) belong to o of m."""
    ins = [torch.arange(o * n // m, -(-(o + 1) * n // m)) for o in range(m)]
    outs = [torch.full((len(part),), o) for o, part in enumerate(ins)]
    nothing = torch.zeros(0, dtype=torch.int64)
    return torch.cat([nothing, *ins]), torch.cat([nothing, *outs])


def in_channels(x: Tensor, y: Tensor, count: int, ins: Tensor, outs: Tensor) -> Pairs:
    """Pairs of places, the same in every channel of every sample.

    Args:
        x, y: the operand and the result, whose last `count` axes are places.
        count: how many.
        ins, outs: ``[k]``, pairs of places, counted in row-major order.
    """
    channels = x.shape[: x.ndim - count].numel()
    size_x, size_y = x.shape[-count:].numel(), y.shape[-count:].numel()
    each = torch.arange(channels).unsqueeze(-1)
    return Pairs(places(x), (each * size_x + ins).flatten(), (each * size_y + outs).flatten(), places(y))


@sparsity_rules.register(*_PLANES)
def random_windows(call: Call) -> list[Link]:
    """Windows that are drawn: a place on all of its channel."""
    x, y = call.given.get("grad_output", call["self"]), call.outputs[0]
    front = list(range(x.ndim - _axes(call)))
    return [(0, x, Grouped(shared(x.shape, front), shared(y.shape, front)))]


@sparsity_rules.register("max_unpool2d", "max_unpool3d")
def unpooling(call: Call) -> list[Link]:
    """A place on what an index sends there, from its own channel."""
    x, y, index = call["self"], call.outputs[0], call["indices"]
    count = _axes(call)
    front = list(range(x.ndim - count))
    planes = shared(x.shape, front)
    if not call.is_fixed(index):
        return [(0, x, Grouped(planes, shared(y.shape, front)))]
    return [(0, x, Grouped(planes * y.shape[-count:].numel() + index.cpu(), places(y)))]
