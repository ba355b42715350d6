"""Convolutions drawn by number: every option, every kind of kernel, singular ones too; small enough for a dense SVD."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from hesse.convolutions.factory import convolution
from hesse.convolutions.operator import Convolution
from tests.convolutions.kernels import HARD, KERNELS

COUNT = 2400
RANDOM_COUNT = 5500
RANDOM = (
    "randn", "fan_in", "identity", "integers", "rank_one",
    "repeated_filters", "nearly_repeated", "uneven_filters", "dead_channels",
)  # fmt: skip
LARGEST = 300  # numbers in an image; now and then twice as many
_FORWARD = (F.conv1d, F.conv2d, F.conv3d)
_SIZES = {1: (3, 60), 2: (2, 14), 3: (2, 6)}
_PAIRS = ((1, 1), (1, 1), (2, 2), (3, 3), (1, 2), (2, 1), (3, 2), (2, 3), (1, 4), (4, 1), (2, 4), (5, 2))

Pair = tuple[int, int]


@dataclass(frozen=True)
class Configuration:
    """One convolution: the arguments of `hesse.convolution`, with padding as one pair an axis, and a cut-off."""

    number: int
    kernel: str
    weight: Tensor
    in_shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[Pair, ...]
    padding_mode: str
    dilation: tuple[int, ...]
    groups: int
    rtol: float | None
    generator_seed: int

    def operator(self) -> Convolution:
        return convolution(
            self.weight,
            self.in_shape,
            stride=self.stride,
            padding=self.padding,
            padding_mode=self.padding_mode,
            dilation=self.dilation,
            groups=self.groups,
        )

    @property
    def out_shape(self) -> tuple[int, ...]:
        return tuple(self.images(self.weight.new_zeros(1, *self.in_shape)).shape[1:])

    def images(self, x: Tensor) -> Tensor:
        """PyTorch's own convolution of images ``[k, *in_shape]``, padded as `torch.nn.Conv2d` and its kin do."""
        pads = [cells for pair in reversed(self.padding) for cells in pair]
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        z = _padded(x, pads, mode) if any(pads) else x
        return _FORWARD[x.ndim - 3](z, self.weight, None, self.stride, 0, self.dilation, self.groups)

    def matrix(self) -> Tensor:
        """``[out_dim, in_dim]``, from one unit image a column."""
        units = torch.eye(math.prod(self.in_shape), dtype=self.weight.dtype).reshape(-1, *self.in_shape)
        return self.images(units).flatten(1).mT.contiguous()

    def random(self, *shape: int) -> Tensor:
        """Standard normal numbers, the same for the same shape."""
        generator = torch.Generator().manual_seed(self.generator_seed)
        return torch.randn(shape, dtype=self.weight.dtype, generator=generator)

    def __str__(self) -> str:
        return (
            f"configuration {self.number}: {self.kernel} {tuple(self.weight.shape)} {str(self.weight.dtype)[6:]}"
            f" on {self.in_shape}, stride={self.stride}, padding={self.padding} {self.padding_mode},"
            f" dilation={self.dilation}, groups={self.groups}, rtol={self.rtol}"
        )


def _padded(x: Tensor, pads: list[int], mode: str) -> Tensor:
    if x.is_complex() and mode in ("reflect", "replicate"):
        return torch.complex(F.pad(x.real, pads, mode=mode), F.pad(x.imag, pads, mode=mode))
    return F.pad(x, pads, mode=mode)


def configuration(number: int, *, kernels: tuple[str, ...] = tuple(KERNELS), largest: int = LARGEST) -> Configuration:
    """The configuration of a number; kinds of kernels take turns."""
    rng = random.Random(f"convolution {number}")
    limit = largest * (2 if rng.random() < 0.1 else 1)
    for _ in itertools.repeat(None):
        drawn = _draw(number, kernels[number % len(kernels)], rng, limit)
        if drawn is not None:
            return drawn
    raise AssertionError


def random_configuration(number: int) -> Configuration:
    """Another one, smaller, with random numbers in its kernel."""
    return replace(configuration(10_000 + number, kernels=RANDOM, largest=150), rtol=None)


def _draw(number: int, kernel: str, rng: random.Random, limit: int) -> Configuration | None:
    ndim = rng.choice((1, 1, 2, 2, 2, 2, 3))
    size = tuple(rng.randint(*_SIZES[ndim]) for _ in range(ndim))
    sides = _axes(rng, ndim, (1, 2, 3, 3, 3, 4, 5) if ndim < 3 else (1, 2, 2, 3))
    stride, dilation = _axes(rng, ndim, (1, 1, 1, 2, 3)), _axes(rng, ndim, (1, 1, 1, 2))
    mode = rng.choice(("zeros", "zeros", "zeros", "circular", "reflect", "replicate"))
    reach = [d * (k - 1) + 1 for k, d in zip(sides, dilation, strict=True)]
    padding = _padding(rng, reach, mode, stride)
    room = {"circular": 0, "reflect": -1}.get(mode, 1000)
    if any(max(pair) > n + room for pair, n in zip(padding, size, strict=True)):
        return None
    out = [(n + sum(pair) - r) // s + 1 for n, pair, r, s in zip(size, padding, reach, stride, strict=True)]
    phases = math.prod(stride)
    groups = rng.choice((1, 1, 1, 1, 2, 3))
    i, o = rng.choice((*_PAIRS, (1, phases), (2, 2 * phases)))
    if min(out) < 1 or max(math.prod(size) * i, math.prod(out) * o) * groups > limit:
        return None
    dtype = torch.complex128 if rng.random() < 0.2 else torch.float64
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    weight = (KERNELS | HARD)[kernel]((groups * o, i, *sides), dtype, generator)
    if rng.random() < 0.1:
        weight = weight * 10.0 ** rng.choice((-150, -30, 30, 150))
    rtol = rng.choice((None,) * 12 + (1e-9, 1e-3, 0.1))
    shape = (groups * i, *size)
    return Configuration(number, kernel, weight, shape, stride, padding, mode, dilation, groups, rtol, rng.randrange(2**31))


def _axes(rng: random.Random, ndim: int, choices: tuple[int, ...]) -> tuple[int, ...]:
    """One number for all axes, or one for each."""
    if rng.random() < 0.6:
        return (rng.choice(choices),) * ndim
    return tuple(rng.choice(choices) for _ in range(ndim))


def _padding(rng: random.Random, reach: list[int], mode: str, stride: tuple[int, ...]) -> tuple[Pair, ...]:
    styles: dict[str, Callable[[int], Pair]] = {
        "valid": lambda r: (0, 0),
        "same": lambda r: ((r - 1) // 2, r - 1 - (r - 1) // 2),
        "full": lambda r: (r - 1, r - 1),
        "some": lambda r: (rng.randint(0, r), rng.randint(0, r)),
        "beyond": lambda r: (r + 1, r),
    }
    names = ["valid", "same", "same", "same", "full", "some", "some", "beyond"]
    if mode != "zeros" and rng.random() < 0.5:
        names = ["same"]
    style = styles[rng.choice(names)]
    return tuple(style(r) for r in reach)
