"""Normalization over some axes, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.rules.sparsity.forms import Call, Grouped, Link, Same, across, shared, sparsity_rules, whole
from hesse.rules.sparsity.movement import is_moved

_BATCH_NORMS = (
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_functional", "_batch_norm_with_update",
    "_batch_norm_with_update_functional", "cudnn_batch_norm", "_native_batch_norm_legit_no_training", "_batch_norm_no_update",
)  # fmt: skip


@sparsity_rules.register("native_layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(call: Call) -> list[Link]:
    """Over the last axes; weight and bias element by element."""
    x, *affine = call.operands
    last = list(range(x.ndim - len(call["normalized_shape"]), x.ndim))
    links: list[Link] = [(index, x, across(x, y, last)) for index, y in enumerate(call.outputs)]
    return links + [(0, t, Same()) for t in affine]


@sparsity_rules.register("native_layer_norm_backward", "_fused_rms_norm_backward")
def layer_norm_backward(call: Call) -> list[Link]:
    """The gradient of the input along the last axes; those of weight and bias are sums over the first ones."""
    x, count = call["input"], len(call["normalized_shape"])
    first, last = list(range(x.ndim - count)), list(range(x.ndim - count, x.ndim))
    links = list[Link]()
    for index, (y, wanted) in enumerate(_wanted(call)):
        for t in call.operands:
            if wanted == 0 and t.ndim == x.ndim:
                links.append((index, t, Grouped(shared(t.shape, first), shared(y.shape, first))))
            elif wanted == 0:
                links.append((index, t, whole(t, y)))
            elif t.shape == x.shape:
                links.append((index, t, Grouped(shared(t.shape, last), shared(y.shape, list(range(count))))))
            elif t.ndim == x.ndim:
                links.append((index, t, whole(t, y)))
    return links


def _wanted(call: Call) -> list[tuple[Tensor, int]]:
    """The gradients that were asked for, and which ones they are."""
    asked = [which for which, wanted in enumerate(call["output_mask"]) if wanted]
    return list(zip(call.outputs, asked, strict=False))


@sparsity_rules.register("native_group_norm")
def group_norm(call: Call) -> list[Link]:
    """Over the channels of a group and all places; weight and bias a channel."""
    x, *affine = call.operands
    groups = call["N"] * call["group"]
    links: list[Link] = [(index, x, Grouped(_blocks(x, groups), _blocks(y, groups))) for index, y in enumerate(call.outputs)]
    return links + [(0, t, Grouped(torch.arange(t.numel()), shared(x.shape, [1]))) for t in affine]


@sparsity_rules.register("native_group_norm_backward")
def group_norm_backward(call: Call) -> list[Link]:
    """The gradient of the input on all of its group; those of weight and bias are sums over samples and places."""
    count, channels, groups = call["N"], call["C"], call["group"]
    size, links = max(1, channels // groups), list[Link]()
    for index, (y, which) in enumerate(_wanted(call)):
        for t in call.operands:
            if which == 0 and t is call["weight"]:
                form = Grouped(torch.arange(channels) // size, _blocks(y, count * groups) % groups)
            elif which == 0:
                form = Grouped(_blocks(t, count * groups), _blocks(y, count * groups))
            elif t.shape == call["input"].shape:
                form = Grouped(shared(t.shape, [1]), torch.arange(channels))
            else:
                form = Grouped(_blocks(t, count * groups) % groups, torch.arange(channels) // size)
            if not (which and t is call["weight"]):
                links.append((index, t, form))
    return links


def _blocks(t: Tensor, count: int) -> Tensor:
    """Which of so many equal parts, one after the other, an element is in."""
    return torch.arange(count).repeat_interleave(t.numel() // max(1, count)).view(t.shape)


@sparsity_rules.register(*_BATCH_NORMS)
def batch_norm(call: Call) -> list[Link]:
    """Over everything but the channel in training mode, element by element otherwise."""
    x, name = call["input"], call.func.overloadpacket.__name__
    training = call.given.get("training", name not in ("_native_batch_norm_legit_no_training", "_batch_norm_no_update"))
    return [(index, t, Same() if t is x and y.shape == x.shape and not training else _by_channel(t, y, x.shape[1]))
            for index, y in enumerate(call.outputs) for t in call.operands]  # fmt: skip


@sparsity_rules.register("native_batch_norm_backward", "cudnn_batch_norm_backward", "batch_norm_backward")
def batch_norm_backward(call: Call) -> list[Link]:
    """As forward: each channel by itself."""
    x = call["input"]
    training = call.given.get("train", call.given.get("update", True))
    outputs = [y for y, _ in _wanted(call)] if "output_mask" in call.given else call.outputs
    return [(index, t, Same() if t.shape == y.shape == x.shape and not training else _by_channel(t, y, x.shape[1]))
            for index, y in enumerate(outputs) for t in call.operands if is_moved(t)]  # fmt: skip


def _by_channel(t: Tensor, y: Tensor, channels: int) -> Grouped:
    def channel(part: Tensor) -> Tensor | None:
        if part.ndim > 1 and part.shape[1] == channels:
            return shared(part.shape, [1])
        return torch.arange(channels) if part.shape == (channels,) else None

    inside, outside = channel(t), channel(y)
    return whole(t, y) if inside is None or outside is None else Grouped(inside, outside)


@sparsity_rules.register("_weight_norm_interface", "_weight_norm_interface_backward")
def weight_norm(call: Call) -> list[Link]:
    """Each slice by itself: of weights, of their directions, of their lengths."""
    dim = call["dim"]
    return [(index, t, Grouped(shared(t.shape, [dim % t.ndim]), shared(y.shape, [dim % y.ndim])))
            if dim != -1 and t.shape[dim] == y.shape[dim] else (index, t, whole(t, y))
            for index, y in enumerate(call.outputs) for t in call.operands]  # fmt: skip
