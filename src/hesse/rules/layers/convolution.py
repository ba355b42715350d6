"""Convolutions in 1, 2 and 3 dimensions, transposed and grouped ones too.

The row of the weight is ``sum_t g[t] (outer) patch[t]`` over output positions t, where ``patch[t]`` is the part of the input
under the kernel at t; for a transposed convolution input and cotangent change places. Patches are strided views, copied for a
few samples at a time when a contraction needs them. Padding modes other than zeros are nodes of their own in the graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from hesse.rules.forms import Contract, Dense, Form
from hesse.rules.layers.meeting import Meeting, layer_rules


@dataclass(frozen=True, eq=False)
class Patches:
    """The patches of images ``[n, f, C, *image]`` under a kernel: ``[n, G, f * positions, C/G * kernel]``, cut when sliced.

    Attributes:
        image: the images, f of each sample, not padded.
        kernel, stride, padding, dilation: one entry a spatial axis.
        positions: number of kernel positions along each axis.
        groups: number of groups of channels.
    """

    image: Tensor
    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    positions: Sequence[int]
    groups: int

    @property
    def shape(self) -> torch.Size:
        """``[n, G, f * positions, C/G * kernel]``."""
        n, frames, channels = self.image.shape[:3]
        per_group = channels // self.groups * math.prod(self.kernel)
        return torch.Size((n, self.groups, frames * math.prod(self.positions), per_group))

    @property
    def dtype(self) -> torch.dtype:
        """The image's dtype."""
        return self.image.dtype

    def columns(self, part: slice) -> Patches:
        """Some columns, whole kernels of some channels of every group."""
        size = math.prod(self.kernel)
        grouped = self.image.unflatten(2, (self.groups, -1))[:, :, :, part.start // size : part.stop // size]
        return replace(self, image=grouped.flatten(2, 3))

    def __getitem__(self, samples: slice) -> Tensor:
        chosen = self.image[samples]
        frames = chosen.shape[1]
        image = F.pad(chosen.flatten(0, 1), [p for pad in reversed(self.padding) for p in (pad, pad)])
        n, channels = image.shape[:2]
        steps = image.stride()[2:]
        windows = image.as_strided(
            (n, channels, *self.kernel, *self.positions),
            (
                *image.stride()[:2],
                *(s * d for s, d in zip(steps, self.dilation, strict=True)),
                *(s * d for s, d in zip(steps, self.stride, strict=True)),
            ),
        )
        grouped = windows.reshape(n, self.groups, -1, math.prod(self.positions))
        return grouped.mT if frames == 1 else grouped.mT.unflatten(0, (-1, frames)).transpose(1, 2).flatten(2, 3)

    def gradient(self, fixed: Tensor) -> Tensor:
        """``sum_n sum_t fixed[n, G, t, :] (outer) patch[n, G, t, :]``: ``[G, a, C/G * kernel]``, by the op's own backward pass.

        Args:
            fixed: ``[n, G, f * positions, a]``, what meets the patches.
        """
        grad = self._as_images(fixed).flatten(0, 1)
        return self._backward(grad, self.image.flatten(0, 1), self.groups).reshape(self.groups, fixed.shape[3], -1)

    def gradient_by_sample(self, fixed: Tensor) -> Tensor:
        """The terms of `gradient` for every sample, ``[n, G, a, C/G * kernel]``: every sample is a group of its own."""
        n, groups, _, a = fixed.shape
        grad, image = (images.transpose(0, 1).flatten(1, 2) for images in (self._as_images(fixed), self.image))
        return self._backward(grad, image, n * groups).reshape(n, groups, a, -1)

    def _as_images(self, fixed: Tensor) -> Tensor:
        """``[n, G, f * positions, a]`` laid out as images again, ``[n, f, G * a, *positions]``."""
        split = fixed.unflatten(2, (self.image.shape[1], -1))
        return split.permute(0, 2, 1, 4, 3).reshape(*split.shape[:1], split.shape[2], -1, *self.positions)

    def _backward(self, grad: Tensor, image: Tensor, groups: int) -> Tensor:
        reach = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, p, d, k, s in self._axes(image)]
        short = [full - own for full, own in zip(reach, self.positions, strict=True)]
        if any(short):  # a transposed convolution's output padding, which no position reaches
            grad = F.pad(grad, [pad for extra in reversed(short) for pad in (0, extra)])
        weight = image.new_empty(grad.shape[1], image.shape[1] // groups, *self.kernel)
        none = [0] * len(self.kernel)
        return torch.ops.aten.convolution_backward(
            grad, image, weight, None, self.stride, self.padding, self.dilation, False, none, groups, [False, True, False]
        )[1]

    def _axes(self, image: Tensor) -> Iterator[tuple[int, int, int, int, int]]:
        return zip(image.shape[2:], self.padding, self.dilation, self.kernel, self.stride, strict=True)


@layer_rules.register("ConvolutionBackward0")
def convolution(meeting: Meeting) -> Form | None:
    """``convolution(input, weight, bias)``; a sample may have several images, merged with the samples' axis."""
    if meeting.where.axis != 0:
        return None
    g = meeting.where.rows(meeting.g)
    n, frames, channels = g.shape[:3]
    if meeting.index == 2:
        return Dense(g.reshape(n, frames, channels, -1).sum((1, 3)))
    if meeting.index != 1:
        return None
    image, groups = meeting.where.rows(meeting.saved("input")), meeting.saved("groups")
    moving, fixed = (g, image) if meeting.saved("transposed") else (image, g)
    axes = len(meeting.shape) - 2
    stride, padding, dilation = (_per_axis(meeting.saved(name), axes) for name in ("stride", "padding", "dilation"))
    patches = Patches(moving, meeting.shape[2:], stride, padding, dilation, fixed.shape[3:], groups)
    split = fixed.reshape(n, frames, groups, fixed.shape[2] // groups, -1)
    left = split.squeeze(1).mT if frames == 1 else split.permute(0, 2, 1, 4, 3).flatten(2, 3)
    if moving.shape[2] == groups:  # one channel a group: rows are small, and patches larger than the image
        return Dense(patches.gradient_by_sample(left))
    return Contract(left, patches)


def _per_axis(option: Sequence[int], axes: int) -> tuple[int, ...]:
    return tuple(option) * (axes if len(option) == 1 else 1)
