"""Where windows lie: padding, strides, dilation and groups, and the views that show every window of an image."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hesse.core.errors import StructureError

MODES = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True)
class Geometry:
    """The geometry of a receptive-field convolution, as that of `torch.nn.Conv2d`.

    Attributes:
        in_channels: of the input.
        out_channels: filters, over all groups.
        kernel: taps along each axis.
        stride: along each axis.
        dilation: along each axis.
        groups: parts of the channels that are treated apart.
        padding: pixels ``(before, after)`` along each axis.
        mode: "zeros", "reflect", "replicate" or "circular".
        value: of padded pixels, where the mode is "zeros".
    """

    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding: tuple[tuple[int, int], ...]
    mode: str
    value: float

    @property
    def dims(self) -> int:
        """Spatial axes."""
        return len(self.kernel)

    @property
    def channels(self) -> int:
        """Input channels of one group."""
        return self.in_channels // self.groups

    @property
    def filters(self) -> int:
        """Output channels of one group."""
        return self.out_channels // self.groups

    @property
    def window(self) -> int:
        """Taps of one output: channels of the group times kernel positions."""
        return self.channels * math.prod(self.kernel)

    @property
    def extents(self) -> tuple[int, ...]:
        """Pixels from the first to the last tap along each axis."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    def pad(self, x: Tensor) -> Tensor:
        """The input with its padding.

        Args:
            x: ``[N, in_channels, *sizes]``.

        Returns:
            The same with larger sizes; x itself where nothing is padded.

        Raises:
            StructureError: more padding than the mode allows, or a kernel larger than the padded input.
        """
        sizes = tuple(x.shape[2:])
        self._require_room(sizes)
        if not any(map(any, self.padding)):
            return x
        widths = [width for pair in reversed(self.padding) for width in pair]
        if self.mode == "zeros":
            return F.pad(x, widths, value=self.value)
        return F.pad(x, widths, mode=self.mode)

    def _require_room(self, sizes: tuple[int, ...]) -> None:
        most = {"zeros": math.inf, "replicate": math.inf, "reflect": -1, "circular": 0}[self.mode]
        asked = "A receptive-field convolution moves a window over the padded input."
        for axis, (size, pair) in enumerate(zip(sizes, self.padding, strict=True)):
            if max(pair) > max(size + most, 0) or (max(pair) > 0 and size == 0 and self.mode != "zeros"):
                raise StructureError(
                    asked,
                    f"padding {pair} along axis {axis} of size {size}, in mode {self.mode!r}",
                    "pad by less than the size (reflect) or at most the size (circular), or use padding_mode='zeros'",
                )
            span, padded = self.extents[axis], size + sum(pair)
            if padded < span:
                raise StructureError(
                    asked,
                    f"a kernel that spans {span} pixels along axis {axis}, where the padded input has {padded}",
                    "pad more, or take a smaller kernel or dilation",
                )

    def windows(self, x: Tensor) -> Tensor:
        """Every window of a padded input, as a view of it.

        Args:
            x: ``[N, in_channels, *padded]``.

        Returns:
            ``[channels of a group, *kernel, groups, N, *out]``, sharing memory with x.
        """
        for axis, (extent, stride, dilation) in enumerate(zip(self.extents, self.stride, self.dilation, strict=True)):
            x = x.unfold(2 + axis, extent, stride)[..., ::dilation]
        x = x.unflatten(1, (self.groups, self.channels))
        d = self.dims
        return x.permute(2, *range(3 + d, 3 + 2 * d), 1, 0, *range(3, 3 + d))

    def stacked(self, x: Tensor) -> Tensor:
        """Every window of a padded input, copied: by operations whose derivatives every transform has a rule for.

        Args:
            x: ``[N, in_channels, *padded]``.

        Returns:
            ``[channels of a group, kernel positions, groups, N, *out]``.
        """
        out = self.out_sizes(x.shape[2:])
        image = x.reshape(x.shape[0], self.groups, self.channels, *x.shape[2:]).movedim((2, 1), (0, 1))
        steps = tuple(zip(out, self.stride, self.dilation, strict=True))
        views = [
            image[(..., *(slice(k * d, k * d + (n - 1) * s + 1, s) for k, (n, s, d) in zip(position, steps, strict=True)))]
            for position in itertools.product(*map(range, self.kernel))
        ]
        return torch.stack(views, 1)

    def rows(self, x: Tensor, first: int, last: int) -> Tensor:
        """The part of a padded input that outputs ``first:last`` along the first spatial axis see."""
        start = first * self.stride[0]
        return x.narrow(2, start, (last - first - 1) * self.stride[0] + self.extents[0])

    def taps(self, weight: Tensor) -> Tensor:
        """The weights, taps first.

        Args:
            weight: ``[*weight_shape, out_channels, channels of a group, *kernel]``.

        Returns:
            ``[*weight_shape, channels of a group, *kernel, groups, filters of a group]``, a view.
        """
        extra = weight.dim() - 2 - self.dims
        weight = weight.unflatten(extra, (self.groups, self.filters))
        return weight.movedim((extra, extra + 1), (-2, -1))

    def untaps(self, taps: Tensor) -> Tensor:
        """The inverse of `taps`."""
        extra = taps.dim() - 3 - self.dims
        return taps.movedim((-2, -1), (extra, extra + 1)).flatten(extra, extra + 1)

    def out_sizes(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Sizes of the output, from padded sizes."""
        return tuple((n - e) // s + 1 for n, e, s in zip(sizes, self.extents, self.stride, strict=True))
