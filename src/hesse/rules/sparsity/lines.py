"""Ops that work along some axes and treat the others alike: reductions, scans, softmax, sorting, transforms, normalization."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.rules.sparsity.forms import (
    Call,
    Grouped,
    Link,
    Pairs,
    Same,
    across,
    axes_of,
    everything,
    places,
    shared,
    sparsity_rules,
)

_REDUCTIONS = (
    "sum", "mean", "nansum", "prod", "std", "var", "std_mean", "var_mean", "amax", "amin", "aminmax", "max", "min", "logsumexp",
    "norm", "linalg_vector_norm", "median", "nanmedian", "kthvalue", "mode", "_softmax", "_log_softmax", "_safe_softmax",
    "softmax", "log_softmax", "sort", "topk", "argsort", "msort", "_fft_r2c", "_fft_c2c", "_fft_c2r", "linalg_cross", "renorm",
    "unique_consecutive", "_unique2", "unique_dim", "cummax", "cummin", "_cummax_helper", "_cummin_helper", "glu", "trace",
)  # fmt: skip
_DIMS = ("dim", "dims", "self_dim")


@sparsity_rules.register(*_REDUCTIONS)
def along(call: Call) -> list[Link]:
    """Each result on all of a line of the operand."""
    x = call.operands[0]
    named = [name for name in _DIMS if name in call.given]
    dims = axes_of(call[named[0]] if named else None, x.ndim)
    name = call.func.overloadpacket.__name__
    if name == "renorm":
        dims = [axis for axis in range(x.ndim) if axis not in dims]
    if name in ("unique_consecutive", "_unique2", "unique_dim", "trace"):
        dims = list(range(x.ndim))
    if name == "glu":
        return _halves(x, call.outputs[0], dims[0] if dims else 0)
    return [(index, t, across(t, y, dims)) for index, y in enumerate(call.outputs) for t in call.operands]


def _halves(x: Tensor, y: Tensor, dim: int) -> list[Link]:
    """A gated linear unit: each result on an element of the first half, and its partner in the second."""
    first, second = places(y), places(y)
    return [(0, x, Grouped(torch.cat([first, second], dim), places(y)))]


@sparsity_rules.register("cumsum", "cumprod", "logcumsumexp")
def scan(call: Call) -> list[Link]:
    """Each result on what stands in front of it; where a factor is zero the rule of a product's derivative looks no further."""
    x = call["self"]
    if not x.ndim or not x.numel():
        return [(0, x, Same())]
    return [(0, x, triangle(x, call["dim"] % x.ndim))]


def triangle(x: Tensor, axis: int, *, backwards: bool = False) -> Pairs:
    """Each element on itself and on those in front of it along an axis."""
    size = x.shape[axis]
    numbers = places(x).movedim(axis, -1).reshape(-1, size)
    i, j = torch.tril_indices(size, size)
    i, j = (j, i) if backwards else (i, j)
    return Pairs(places(x), numbers[:, j].flatten(), numbers[:, i].flatten(), places(x))


@sparsity_rules.register("_softmax_backward_data", "_log_softmax_backward_data")
def softmax_backward(call: Call) -> list[Link]:
    """Each result on a line of the gradient and of the output."""
    y = call.outputs[0]
    dims = axes_of(call["dim"], y.ndim)
    return [(0, t, across(t, y, dims)) for t in call.operands]


@sparsity_rules.register("native_layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(call: Call) -> list[Link]:
    """Over the last axes; weight and bias element by element."""
    x, *affine = call.operands
    last = list(range(x.ndim - len(call["normalized_shape"]), x.ndim))
    links: list[Link] = [(index, x, across(x, y, last)) for index, y in enumerate(call.outputs)]
    return links + [(0, t, Same()) for t in affine]


@sparsity_rules.register("native_group_norm")
def group_norm(call: Call) -> list[Link]:
    """Over the channels of a group and all places; weight and bias a channel."""
    x, *affine = call.operands
    samples, channels, groups = call["N"], call["C"], call["group"]
    group = torch.arange(samples * groups).repeat_interleave(x.numel() // max(1, samples * groups)).view(x.shape)
    links: list[Link] = [(0, x, Grouped(group, group))]
    links += [(index, x, Grouped(group, torch.arange(y.numel()))) for index, y in enumerate(call.outputs[1:], 1)]
    channel = shared(x.shape, [1]) if x.ndim > 1 else torch.zeros(x.shape, dtype=torch.int64)
    return links + [(0, t, Grouped(torch.arange(channels), channel)) for t in affine]


@sparsity_rules.register("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_functional",
                         "_batch_norm_with_update", "_batch_norm_with_update_functional", "cudnn_batch_norm",
                         "_native_batch_norm_legit_no_training", "_batch_norm_no_update")  # fmt: skip
def batch_norm(call: Call) -> list[Link]:
    """Over everything but the channel in training mode, element by element otherwise."""
    x = call["input"]
    training = call.given.get("training", "update" in call.func.overloadpacket.__name__ and "no_update" not in str(call.func))
    channel, links = shared(x.shape, [1]), list[Link]()
    for index, y in enumerate(call.outputs):
        for t in call.operands:
            if y.shape == x.shape and t is x and not training:
                links.append((index, x, Same()))
            elif y.numel() in (x.numel(), x.shape[1]) and t.numel() in (x.numel(), x.shape[1]):
                inside = channel if t is x else torch.arange(x.shape[1])
                links.append((index, t, Grouped(inside, channel if y.shape == x.shape else torch.arange(y.numel()))))
            else:
                links += [link for link in everything(call, [t]) if link[0] == index]
    return links
