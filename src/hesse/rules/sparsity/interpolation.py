"""Interpolation: each axis has a few places between which a place lies; and places that the input itself names."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor

from hesse.rules.sparsity.forms import Call, Grouped, Link, places, shared, sparsity_rules
from hesse.rules.sparsity.pooling import in_channels

_SMOOTH = {  # name: places between which one lies, along an axis
    "upsample_linear1d": 2, "upsample_bilinear2d": 2, "upsample_trilinear3d": 2, "upsample_bicubic2d": 4,
    "_upsample_bilinear2d_aa": 2, "_upsample_bicubic2d_aa": 4, "_upsample_lanczos2d_aa": 6,
}  # fmt: skip
_NEAREST = (
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d",
)  # fmt: skip
_PADS = tuple(f"{kind}_pad{count}d" for kind in ("reflection", "replication") for count in (1, 2, 3))


@sparsity_rules.register(*_SMOOTH)
def interpolation(call: Call) -> list[Link]:
    """A place on its neighbors, in its own channel."""
    x, y = call["self"], call.outputs[0]
    ins, outs = _neighbors(call, x, y)
    return [(0, x, in_channels(x, y, x.ndim - 2, ins, outs))]


@sparsity_rules.register(*(f"{name}_backward" for name in _SMOOTH))
def interpolation_backward(call: Call) -> list[Link]:
    """A place's gradient on those of the places that it is a neighbor of."""
    grad, y = call["grad_output"], call.outputs[0]
    ins, outs = _neighbors(call, y, grad)
    return [(0, grad, in_channels(grad, y, y.ndim - 2, outs, ins))]


def _neighbors(call: Call, image: Tensor, scaled: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of places of an image and of the scaled one."""
    ins, outs = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    for axis in range(image.ndim - 2):
        n, m = image.shape[axis + 2], scaled.shape[axis + 2]
        axis_in, axis_out = _along(call, axis, n, m, image)
        ins, outs = (ins.unsqueeze(-1) * n + axis_in).flatten(), (outs.unsqueeze(-1) * m + axis_out).flatten()
    return ins, outs


def _along(call: Call, axis: int, n: int, m: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs along one axis, found by running the op on combs of ones, whose teeth are further apart than neighbors are."""
    name = call.func.overloadpacket.__name__.removesuffix("_backward")
    count = like.ndim - 2
    given = call.given.get(f"scales_{'dhw'[3 - count + axis]}", call.given.get("scales"))
    smoothed = max(1, ceil(n / m), ceil(1 / given) if given else 1) if name.endswith("_aa") else 1
    width = (_SMOOTH[name] + 1) * smoothed
    straight = not given or abs(n * given - m) <= 1
    apart = min(n, 2 * (width + 2 * ceil(n / m) + 2)) if straight else n
    combs = (torch.arange(n) % apart == torch.arange(apart).unsqueeze(-1)).to(like)
    shape, size = [apart, 1] + [2] * count, [2] * count  # axes of size 1 mislead the antialiased kernels
    shape[axis + 2], size[axis] = n, m
    columns = [slice(None) if a == axis else None for a in range(count)]
    scales = [given if a == axis else None for a in range(count)]
    run = getattr(torch.ops.aten, name).default
    found = run(combs[:, None, *columns].expand(shape).contiguous(), size, call["align_corners"], *scales)
    found = found[:, 0].movedim(axis + 1, -1)[:, *[0] * (count - 1)] != 0
    comb, out = found.cpu().nonzero(as_tuple=True)
    center = ((out + 0.5) * n / m - 0.5).round().to(torch.int64)
    if call["align_corners"]:
        center = (out * ((n - 1) / max(1, m - 1))).round().to(torch.int64)
    tooth = center + (comb - center + apart // 2) % apart - apart // 2
    tooth = torch.where(tooth < 0, tooth + apart, torch.where(tooth >= n, tooth - apart, tooth))
    return tooth, out


@sparsity_rules.register(*(f"{name}_backward" for name in (*_NEAREST, *_PADS)))
def movement_backward(call: Call) -> list[Link]:
    """The gradients of the places that an element was moved to."""
    grad, y = call["grad_output"], call.outputs[0]
    forward = getattr(torch.ops.aten, call.func.overloadpacket.__name__.removesuffix("_backward")).default
    numbers = places(y).to(torch.float64)
    options = [call["padding"]] if "padding" in call.given else [
        call["output_size"], *(value for name, value in call.given.items() if name.startswith("scales"))]  # fmt: skip
    found = forward(numbers, *options)
    return [(0, grad, Grouped(found.to(torch.int64), places(y)))]


@sparsity_rules.register("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler")
def grid_sampling(call: Call) -> list[Link]:
    """A place on all places of the image in its channel, and on where it lies itself."""
    x, grid = call.operands
    y, axes = call.outputs[0], list(range(2, x.ndim))
    links: list[Link] = [(0, x, Grouped(shared(x.shape, [0, 1]), shared(y.shape, [0, 1])))]
    return [*links, (0, grid, _of_place(grid, y, axes))]


def _of_place(grid: Tensor, image: Tensor, axes: Sequence[int]) -> Grouped:
    """An element of an image on the coordinates of its place."""
    return Grouped(shared(grid.shape, [0, *(a - 1 for a in axes)]), shared(image.shape, [0, *axes]))


@sparsity_rules.register("grid_sampler_2d_backward", "grid_sampler_3d_backward")
def grid_sampling_backward(call: Call) -> list[Link]:
    """The image's gradient on those of its channel, and on the grid; the grid's on those of its place, and on the image."""
    grad, x, grid = call["grad_output"], call["input"], call["grid"]
    links, number, axes = list[Link](), 0, list(range(2, x.ndim))
    channel, sample = [0, 1], [0]
    if call["output_mask"][0]:
        y = call.outputs[0]
        links += [(0, grad, Grouped(shared(grad.shape, channel), shared(y.shape, channel))),
                  (0, grid, Grouped(shared(grid.shape, sample), shared(y.shape, sample)))]  # fmt: skip
        number = 1
    if call["output_mask"][1] and number < len(call.outputs):
        y, at = call.outputs[number], [0, *(a - 1 for a in axes)]
        links += [(number, grad, Grouped(shared(grad.shape, [0, *axes]), shared(y.shape, at))),
                  (number, grid, Grouped(shared(grid.shape, at), shared(y.shape, at))),
                  (number, x, Grouped(shared(x.shape, sample), shared(y.shape, sample)))]  # fmt: skip
    return links
