"""The matrix of a convolution as PyTorch computes it: `F.pad` and `F.conv*` applied to unit images, one at a time."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CONV = (F.conv1d, F.conv2d, F.conv3d)


def matrix_of(f: Callable[[Tensor], Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """``[out, in]`` of a linear function of an image."""
    columns = []
    for place in range(torch.Size(shape).numel()):
        unit = torch.zeros(shape, dtype=dtype)
        unit.view(-1)[place] = 1
        columns.append(f(unit).reshape(-1))
    return torch.stack(columns, 1)


@dataclass(frozen=True)
class Options:
    """What a convolution is made of, drawn or written down."""

    weight: Tensor
    shape: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def apply(self, x: Tensor) -> Tensor:
        """By PyTorch: pads as `torch.nn.Conv2d` does, and convolves."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using padding='same' with even kernel")
            return self._apply(x)

    def _apply(self, x: Tensor) -> Tensor:
        options = {"stride": 1, "padding": 0, "padding_mode": "zeros", "dilation": 1, "groups": 1, **self.options}
        axes = self.weight.ndim - 2
        padding, mode = options["padding"], options["padding_mode"]
        if mode == "zeros" and not isinstance(padding, list):
            return CONV[axes - 1](
                x[None], self.weight, None, options["stride"], padding, options["dilation"], options["groups"]
            )[0]
        if isinstance(padding, str):
            dilation = options["dilation"] if isinstance(options["dilation"], tuple) else (options["dilation"],) * axes
            reach = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, self.weight.shape[2:], strict=True)]
            padding = [(total // 2, total - total // 2) for total in reach]
        if isinstance(padding, int):
            padding = [(padding, padding)] * axes
        pairs = [pair if isinstance(pair, tuple) else (pair, pair) for pair in padding]
        flat = list(itertools.chain(*reversed(pairs)))
        x = F.pad(x[None], flat, mode="constant" if mode == "zeros" else mode)
        return CONV[axes - 1](x, self.weight, None, options["stride"], 0, options["dilation"], options["groups"])[0]

    def matrix(self) -> Tensor:
        """``[out, in]``."""
        return matrix_of(self.apply, self.shape, self.weight.dtype)

    def __str__(self) -> str:
        return f"weight {list(self.weight.shape)} {self.weight.dtype}, {self.shape}, {self.options}"


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def draw(rng: random.Random, dtype: torch.dtype = torch.float64) -> Options:
    """A convolution of random options that PyTorch accepts: small, and no two axes alike."""
    while True:
        axes = rng.choice((1, 2, 2, 3))
        mode = rng.choice(("zeros", "circular", "reflect", "replicate"))
        kernel = [rng.randint(1, 4 if axes < 3 else 3) for _ in range(axes)]
        size = [rng.randint(1, (9, 6, 4)[axes - 1]) for _ in range(axes)]
        stride, dilation = ([rng.choice((1, 1, 2, 3)) for _ in range(axes)] for _ in range(2))
        form = rng.choice(("same", "valid", "number", "numbers", "pairs", "pairs"))
        most = [{"circular": n, "reflect": n - 1}.get(mode, 3) for n in size]
        padding: Any = {
            "number": rng.randint(0, min(*most, 3)) if axes > 1 else rng.randint(0, min(most[0], 3)),
            "numbers": tuple(rng.randint(0, min(m, 3)) for m in most),
            "pairs": [(rng.randint(0, min(m, 3)), rng.randint(0, min(m, 3))) for m in most],
        }.get(form, form)
        if form == "same":
            stride = [1] * axes
            totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            if any(total - total // 2 > m for total, m in zip(totals, most, strict=True)) and mode in ("circular", "reflect"):
                continue
            pads = totals
        elif form == "pairs":
            pads = [sum(pair) for pair in padding]
        else:
            pads = [2 * p for p in padding] if form == "numbers" else [0 if form == "valid" else 2 * padding] * axes
        if any(n + p < d * (k - 1) + 1 for n, p, d, k in zip(size, pads, dilation, kernel, strict=True)):
            continue
        groups = rng.choice((1, 1, 2, 3))
        c_in, c_out = groups * rng.randint(1, 2), groups * rng.randint(1, 2)
        weight = randn(c_out, c_in // groups, *kernel, dtype=dtype, seed=rng.randrange(2**31))
        options = {
            "stride": tuple(stride),
            "padding": padding,
            "padding_mode": mode,
            "dilation": tuple(dilation),
            "groups": groups,
        }
        return Options(weight, (c_in, *size), options)


def named(dtype: torch.dtype = torch.float64) -> Iterator[tuple[str, Options]]:
    """One convolution of each kind."""

    def w(*shape: int) -> Tensor:
        return randn(*shape, dtype=dtype, seed=sum(shape))

    yield "one axis", Options(w(3, 2, 3), (2, 6), {"padding": 1})
    yield "two axes, strided", Options(w(3, 2, 3, 2), (2, 5, 4), {"stride": (2, 1), "padding": (1, 0)})
    yield "three axes", Options(w(2, 1, 2, 1, 2), (1, 3, 2, 3), {"padding": 1, "stride": (1, 2, 1)})
    yield "same, even", Options(w(2, 2, 2, 4), (2, 4, 5), {"padding": "same"})
    yield "circular", Options(w(2, 2, 3, 3), (2, 4, 3), {"padding": 1, "padding_mode": "circular"})
    yield "circular, once around", Options(w(2, 1, 5), (1, 3), {"padding": 3, "padding_mode": "circular"})
    yield "reflect", Options(w(1, 2, 3, 5), (2, 4, 5), {"padding": (1, 2), "padding_mode": "reflect"})
    yield "replicate, pairs", Options(w(2, 1, 3, 3), (1, 4, 3), {"padding": [(2, 0), (1, 3)], "padding_mode": "replicate"})
    yield "groups, dilated", Options(w(6, 2, 3), (6, 7), {"groups": 3, "dilation": 2, "padding": 2})
    yield "depthwise", Options(w(3, 1, 3, 3), (3, 4, 3), {"groups": 3, "padding": 1})
    yield "one by one", Options(w(3, 2, 1, 1), (2, 3, 2))
    yield "cells that no window sees", Options(w(2, 1, 1, 2), (1, 5, 6), {"stride": (2, 3)})
    yield "one cell, replicated", Options(w(2, 2, 3, 2), (2, 1, 1), {"padding": [(1, 1), (2, 1)], "padding_mode": "replicate"})
