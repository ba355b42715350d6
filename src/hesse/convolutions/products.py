"""A convolution and its transpose, applied to images; differentiable to any order."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hesse.convolutions.geometry import Geometry

_FORWARD = (F.conv1d, F.conv2d, F.conv3d)
_BACKWARD = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def convolve(g: Geometry, weight: Tensor, x: Tensor) -> Tensor:
    """``[k, in_channels, *size] -> [k, out_channels, *out_size]``."""
    padding = _own_padding(g)
    if padding is None:
        x, padding = padded(g, x), (0,) * g.ndim
    return _FORWARD[g.ndim - 1](x, weight, None, g.stride, padding, g.dilation, g.groups)


def convolve_transposed(g: Geometry, weight: Tensor, y: Tensor) -> Tensor:
    """The transpose (no conjugation): ``[k, out_channels, *out_size] -> [k, in_channels, *size]``."""
    left = tuple(n - (m - 1) * s - reach for n, m, s, reach in zip(g.padded_size, g.out_size, g.stride, g.reach, strict=True))
    padding = _own_padding(g)
    if padding is not None:
        return _BACKWARD[g.ndim - 1](y, weight, None, g.stride, padding, left, g.groups, g.dilation)
    return folded(g, _BACKWARD[g.ndim - 1](y, weight, None, g.stride, 0, left, g.groups, g.dilation))


def _own_padding(g: Geometry) -> tuple[int, ...] | None:
    """Zeros, as many on both sides, which PyTorch's convolutions add themselves; None for other paddings."""
    if g.padding_mode == "zeros" and all(before == after for before, after in g.padding):
        return tuple(before for before, _ in g.padding)
    return None


def padded(g: Geometry, x: Tensor) -> Tensor:
    """``[k, c, *size] -> [k, c, *padded_size]``."""
    if g.padding_mode == "zeros":
        return F.pad(x, [cells for pair in reversed(g.padding) for cells in pair])
    for axis in range(g.ndim):
        if any(g.padding[axis]):
            before, after = (x.index_select(axis + 2, cells.to(x.device)) for cells in _repeated(g, axis))
            x = torch.cat([before, x, after], axis + 2)
    return x


def folded(g: Geometry, x: Tensor) -> Tensor:
    """The transpose of `padded`: ``[k, c, *padded_size] -> [k, c, *size]``."""
    for axis in range(g.ndim):
        (before, after), n = g.padding[axis], g.size[axis]
        if not (before or after):
            continue
        image = x.narrow(axis + 2, before, n)
        if g.padding_mode != "zeros":
            repeats = [x.narrow(axis + 2, 0, before), x.narrow(axis + 2, before + n, after)]
            cells = torch.cat(_repeated(g, axis)).to(x.device)
            image = image.index_add(axis + 2, cells, torch.cat(repeats, axis + 2))
        x = image
    return x


def _repeated(g: Geometry, axis: int) -> tuple[Tensor, Tensor]:
    """The cells of the image that stand before and after it."""
    sources, (before, after) = g.sources(axis), g.padding[axis]
    return sources[:before], sources[len(sources) - after :]
