"""Convolutions in 1, 2 and 3 dimensions, transposed and grouped ones too.

The row of the weight is ``sum_t g[t] (outer) patch[t]`` over output positions t, where ``patch[t]`` is the part of the input
under the kernel at t; for a transposed convolution input and cotangent change places. Patches are strided views, copied for a
few samples at a time when a contraction needs them. Padding modes other than zeros are nodes of their own in the graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from hesse.rules.forms import Contract, Dense, Form
from hesse.rules.layers.meeting import Meeting, layer_rules


@dataclass(frozen=True, eq=False)
class Patches:
    """The patches of an image ``[n, C, *image]`` under a kernel: ``[n, G, positions, C/G * kernel]``, cut when sliced.

    Attributes:
        image: the image, not padded.
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
        """``[n, G, positions, C/G * kernel]``."""
        n, channels = self.image.shape[:2]
        per_group = channels // self.groups * math.prod(self.kernel)
        return torch.Size((n, self.groups, math.prod(self.positions), per_group))

    @property
    def dtype(self) -> torch.dtype:
        """The image's dtype."""
        return self.image.dtype

    def columns(self, part: slice) -> Patches:
        """Some columns, whole kernels of some channels of every group."""
        size = math.prod(self.kernel)
        grouped = self.image.unflatten(1, (self.groups, -1))[:, :, part.start // size : part.stop // size]
        return replace(self, image=grouped.flatten(1, 2))

    def __getitem__(self, samples: slice) -> Tensor:
        image = F.pad(self.image[samples], [p for pad in reversed(self.padding) for p in (pad, pad)])
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
        return grouped.mT


@layer_rules.register("ConvolutionBackward0")
def convolution(meeting: Meeting) -> Form | None:
    """``convolution(input, weight, bias)``."""
    if meeting.where.axis != 0 or not meeting.where.is_plain:
        return None
    g = meeting.g
    if meeting.index == 2:
        return Dense(g.flatten(2).sum(2))
    if meeting.index != 1:
        return None
    image, groups = meeting.saved("input"), meeting.saved("groups")
    moving, fixed = (g, image) if meeting.saved("transposed") else (image, g)
    patches = Patches(
        moving,
        meeting.shape[2:],
        meeting.saved("stride"),
        meeting.saved("padding"),
        meeting.saved("dilation"),
        fixed.shape[2:],
        groups,
    )
    return Contract(fixed.reshape(fixed.shape[0], groups, fixed.shape[1] // groups, -1).mT, patches)
