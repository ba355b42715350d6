"""Kinds of kernels: random ones, near the identity, blurs, and those whose convolution is singular."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Shape = tuple[int, ...]


def randn(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=generator)


def fan_in(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return randn(shape, dtype, generator) / math.prod(shape[1:]) ** 0.5


def identity(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """The identity, or as much of it as the channels allow, and some noise."""
    return _middle(shape, dtype) + 0.3 * fan_in(shape, dtype, generator)


def noiseless_identity(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return _middle(shape, dtype)


def shift(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """One tap in a corner: cells shifted out are lost."""
    return _at(shape, dtype, (0,) * (len(shape) - 2))


def box(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return _mixed(torch.ones(shape[2:], dtype=dtype) / math.prod(shape[2:]), shape, dtype, generator)


def motion(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """A blur along the last axis."""
    spatial = torch.zeros(shape[2:], dtype=dtype)
    spatial[(*(n // 2 for n in shape[2:-1]), slice(None))] = 1 / shape[-1]
    return _mixed(spatial, shape, dtype, generator)


def gaussian(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    width = 0.5 + float(torch.rand((), generator=generator))
    spatial = torch.ones((), dtype=dtype)
    for n in shape[2:]:
        line = torch.exp(-((torch.arange(n) - (n - 1) / 2) ** 2) / (2 * width**2)).to(dtype)
        spatial = spatial[..., None] * line
    return _mixed(spatial, shape, dtype, generator)


def difference(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Taps that sum to zero, in integers: constant images are lost."""
    weight = _integers(shape, dtype, generator).flatten(2)
    weight[..., -1] -= weight.sum(-1)
    return weight.reshape(shape)


def vanishing(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """``1, 0 ... 0, -1`` or ``1, -1`` along each axis: the symbol vanishes at some frequencies of any torus."""
    spatial = torch.ones((), dtype=dtype)
    for n in shape[2:]:
        line = torch.zeros(n, dtype=dtype)
        line[0] += 1
        line[-1] -= float(n > 1)
        spatial = spatial[..., None] * line
    return _mixed(spatial, shape, dtype, generator)


def integers(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return _integers(shape, dtype, generator)


def zero(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def repeated_filters(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    weight = fan_in(shape, dtype, generator)
    return weight[:1].expand(shape).clone()


def repeated_inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    weight = fan_in(shape, dtype, generator)
    return weight[:, :1].expand(shape).clone()


def dead_channels(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """A filter of zeros, and an input that none reads."""
    weight = randn(shape, dtype, generator)
    weight[-1], weight[:, 0] = (weight[-1] if shape[0] == 1 else 0), (weight[:, 0] if shape[1] == 1 else 0)
    return weight


def rank_one(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """One image of weights, mixed over channels by a matrix of rank one."""
    left, right = (torch.randn(n, dtype=dtype, generator=generator) for n in shape[:2])
    spatial = torch.randn(shape[2:], dtype=dtype, generator=generator)
    return torch.einsum("o,i,...->oi...", left, right, spatial)


def nearly_repeated(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Filters that differ by a millionth."""
    return repeated_filters(shape, dtype, generator) + 1e-6 * fan_in(shape, dtype, generator)


def uneven_filters(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Filters of very different size."""
    scale = torch.logspace(0, -8, shape[0], dtype=torch.float64).to(dtype)
    return identity(shape, dtype, generator) * scale.reshape(-1, *(1,) * (len(shape) - 1))


def smooth(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Binomial weights, the box convolved with itself: the symbol vanishes at the highest frequency, to a high order."""
    spatial = torch.ones((), dtype=dtype)
    for n in shape[2:]:
        spatial = spatial[..., None] * torch.tensor([math.comb(n - 1, k) for k in range(n)], dtype=dtype)
    return _mixed(spatial, shape, dtype, generator)


def nearly_singular(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """A singular one and noise of a size between a thousandth and 1e-13 of it."""
    noise = 10.0 ** (-3 - 10 * float(torch.rand((), generator=generator)))
    return rank_one(shape, dtype, generator) + noise * randn(shape, dtype, generator)


def _integers(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    parts = torch.randint(-4, 5, (2, *shape), generator=generator).double()
    return torch.complex(parts[0], parts[1]) if dtype.is_complex else parts[0]


def _at(shape: Shape, dtype: torch.dtype, cell: tuple[int, ...]) -> Tensor:
    weight = torch.zeros(shape, dtype=dtype)
    for o in range(shape[0]):
        weight[(o, o % shape[1], *cell)] = 1
    return weight


def _middle(shape: Shape, dtype: torch.dtype) -> Tensor:
    return _at(shape, dtype, tuple(n // 2 for n in shape[2:]))


def _mixed(spatial: Tensor, shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """One image of weights for all channels, which an integer matrix mixes."""
    mixing = _integers(shape[:2], dtype, generator)
    mixing[0, 0] += not bool(mixing.any())
    return torch.einsum("oi,...->oi...", mixing, spatial)


Kernel = Callable[[Shape, torch.dtype, torch.Generator], Tensor]
_ALL: tuple[Kernel, ...] = (
    randn, fan_in, identity, noiseless_identity, shift, box, motion, gaussian, difference, vanishing, integers, zero,
    repeated_filters, repeated_inputs, dead_channels, rank_one, nearly_repeated, uneven_filters,
)  # fmt: skip
KERNELS: dict[str, Kernel] = {kernel.__name__: kernel for kernel in _ALL}
HARD: dict[str, Kernel] = {kernel.__name__: kernel for kernel in (smooth, nearly_singular)}
