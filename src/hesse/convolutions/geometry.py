"""Where a convolution reads and writes: sizes, strides, padding; everything but the values of its weight."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

PADDING_MODES = ("zeros", "circular", "reflect", "replicate")


@dataclass(frozen=True)
class Geometry:
    """The shape of a convolution ``y[o, n] = sum_{i, k} weight[o, i, k] x[i, stride n + dilation k - before]``.

    Attributes:
        in_channels, out_channels, groups: channels of all groups together, and the number of groups.
        size: of the input image, one number an axis.
        kernel, stride, dilation: one number an axis.
        padding: cells before and after the image, one pair an axis.
        padding_mode: what stands there: ``"zeros"``, ``"circular"``, ``"reflect"`` or ``"replicate"``.
    """

    in_channels: int
    out_channels: int
    groups: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    padding_mode: str

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.size)

    @property
    def padded_size(self) -> tuple[int, ...]:
        """Of the image with its padding."""
        return tuple(n + before + after for n, (before, after) in zip(self.size, self.padding, strict=True))

    @property
    def reach(self) -> tuple[int, ...]:
        """Cells that a kernel spans: ``dilation (kernel - 1) + 1``."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def out_size(self) -> tuple[int, ...]:
        """Of the output image."""
        triples = zip(self.padded_size, self.reach, self.stride, strict=True)
        return tuple((n - reach) // s + 1 for n, reach, s in triples)

    @property
    def in_shape(self) -> tuple[int, ...]:
        """``(in_channels, *size)``."""
        return (self.in_channels, *self.size)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """``(out_channels, *out_size)``."""
        return (self.out_channels, *self.out_size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """``(out_channels, in_channels / groups, *kernel)``."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def one_group(self) -> Geometry:
        """The geometry of each of the groups."""
        return replace(
            self, in_channels=self.in_channels // self.groups, out_channels=self.out_channels // self.groups, groups=1
        )

    @property
    def is_circular(self) -> bool:
        """Whether it is a convolution on a torus: the wrapped image closes up, and the stride divides it."""
        if any(m * s != n for m, s, n in zip(self.out_size, self.stride, self.size, strict=True)):
            return False
        bare = all(reach == 1 and pad == (0, 0) for reach, pad in zip(self.reach, self.padding, strict=True))
        return bare or self.padding_mode == "circular"

    def sources(self, axis: int) -> Tensor:
        """For each cell of the padded axis the cell of the image that stands there; -1 for a zero. ``[padded]``, int64."""
        n, (before, after) = self.size[axis], self.padding[axis]
        places = torch.arange(-before, n + after)
        if self.padding_mode == "zeros":
            return torch.where((places >= 0) & (places < n), places, -1)
        if self.padding_mode == "circular":
            return places % n
        if self.padding_mode == "replicate":
            return places.clamp(0, n - 1)
        return (n - 1 - (n - 1 - places.abs()).abs()).abs()

    def reads(self, axis: int) -> Tensor:
        """For each cell of an output axis and each tap the cell of the image that it reads, or -1: ``[out, kernel]``."""
        first, offset = torch.arange(self.out_size[axis]), torch.arange(self.kernel[axis])
        return self.sources(axis)[first[:, None] * self.stride[axis] + offset * self.dilation[axis]]

    def __str__(self) -> str:
        options = [
            f"{name}={_short(getattr(self, name))}" for name in ("stride", "dilation") if set(getattr(self, name)) != {1}
        ]
        if any(itertools.chain(*self.padding)):
            pairs = [before if before == after else (before, after) for before, after in self.padding]
            options.append(f"padding={_short(tuple(pairs))}")
            options += [] if self.padding_mode == "zeros" else [f"padding_mode={self.padding_mode!r}"]
        options += [f"groups={self.groups}"] if self.groups > 1 else []
        shapes = " -> ".join("x".join(map(str, shape)) for shape in (self.in_shape, self.out_shape))
        return ", ".join([shapes, f"kernel={'x'.join(map(str, self.kernel))}", *options])

    @property
    def in_dim(self) -> int:
        """Numbers in an input image."""
        return math.prod(self.in_shape)

    @property
    def out_dim(self) -> int:
        """Numbers in an output image."""
        return math.prod(self.out_shape)


def _short(values: tuple[object, ...]) -> str:
    return str(values[0]) if len(set(values)) == 1 else str(values)
