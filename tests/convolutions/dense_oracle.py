"""Small convolutions of every kind, and their matrices, made by PyTorch's own convolution and differentiable by the weight."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hesse.convolutions import Convolution, convolution

_FORWARD = (F.conv1d, F.conv2d, F.conv3d)


@dataclass(frozen=True)
class Case:
    """A convolution.

    Attributes:
        name: of the test.
        weight_shape, in_shape: as `hesse.convolution` takes them.
        options: the rest of its arguments, numbers only.
        dtype: of the weight.
    """

    name: str
    weight_shape: tuple[int, ...]
    in_shape: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64

    def weight(self, seed: int = 0) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(self.weight_shape, dtype=self.dtype, generator=torch.Generator().manual_seed(seed))

    def operator(self, weight: Tensor) -> Convolution:
        return convolution(weight, self.in_shape, **self.options)

    def matrix(self, weight: Tensor) -> Tensor:
        """``[out, in]``, from one unit image a column."""
        count = math.prod(self.in_shape)
        images = torch.eye(count, dtype=weight.dtype).reshape(count, *self.in_shape)
        return self.images(weight, images).flatten(1).mT

    def images(self, weight: Tensor, x: Tensor) -> Tensor:
        """PyTorch's convolution of ``[k, *in_shape]``."""
        options = {key: value for key, value in self.options.items() if key not in ("padding", "padding_mode")}
        padding, mode = self.options.get("padding", 0), self.options.get("padding_mode", "zeros")
        if mode == "zeros":
            return _FORWARD[x.ndim - 3](x, weight, None, padding=padding, **options)
        sides = padding if isinstance(padding, tuple) else (padding,) * (x.ndim - 2)
        pads = [cells for side in reversed(sides) for cells in (side, side)]
        x = F.pad(x, pads, mode=mode)
        return _FORWARD[x.ndim - 3](x, weight, None, **options)

    def __str__(self) -> str:
        return self.name


CASES = (
    Case("square", (2, 2, 3, 3), (2, 4, 3), {"padding": 1}),
    Case("tall", (3, 2, 2, 3), (2, 4, 3), {"padding": 1}),
    Case("wide", (2, 3, 3, 2), (3, 3, 4), {"padding": 1}),
    Case("valid", (2, 2, 2, 3), (2, 4, 5)),
    Case("strided", (5, 1, 3, 2), (1, 6, 5), {"stride": 2, "padding": 1}),
    Case("strided wide", (2, 1, 3), (1, 9), {"stride": 3, "padding": 1}),
    Case("circular", (2, 2, 3, 3), (2, 4, 3), {"padding": 1, "padding_mode": "circular"}),
    Case("reflect", (2, 1, 3, 3), (1, 4, 3), {"padding": 1, "padding_mode": "reflect"}),
    Case("replicate", (1, 2, 3), (2, 7), {"padding": 1, "padding_mode": "replicate"}),
    Case("groups", (6, 2, 3), (4, 5), {"padding": 1, "groups": 2}),
    Case("dilated", (2, 2, 3), (2, 7), {"padding": 2, "dilation": 2}),
    Case("3-D", (2, 1, 2, 2, 1), (1, 3, 3, 2), {"padding": 1}),
    Case("dead cells", (3, 1, 1, 2), (1, 5, 4), {"stride": 2}),
    Case("complex square", (2, 2, 3), (2, 5), {"padding": 1}, torch.complex128),
    Case("complex tall", (3, 2, 3), (2, 4), {"padding": 1}, torch.complex128),
    Case("complex wide", (1, 2, 2, 2), (2, 3, 3), {}, torch.complex128),
)
