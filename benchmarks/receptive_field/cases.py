"""What is computed, and the ways to compute it; every way of a case gives the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hesse.nn import ReceptiveFieldConv2d


@dataclass(frozen=True)
class Case:
    """A convolution: `what` is a key of `KINDS`."""

    what: str
    shape: tuple[int, int, int, int]
    filters: int
    kernel: int

    @property
    def title(self) -> str:
        """For tables."""
        return f"{KINDS[self.what]}, {list(self.shape)} -> {self.filters}, {self.kernel} x {self.kernel}"


KINDS = {"multiply": "sum of products", "tangent": "product of tangents of sums", "distance": "sum of distances"}
CASES = {
    "multiply": Case("multiply", (8, 16, 32, 32), 32, 3),
    "multiply wide": Case("multiply", (4, 3, 64, 64), 16, 5),
    "tangent": Case("tangent", (4, 3, 32, 32), 8, 3),
    "tangent map": Case("tangent", (1, 1, 128, 128), 1, 5),
    "distance": Case("distance", (8, 16, 32, 32), 32, 3),
}
WAYS = {
    "conv2d": "`conv2d`",
    "hand": "by hand",
    "hesse": "hesse",
    "general": "hesse, pair by pair",
    "native": "hesse, pair by pair, `compile=\"native\"`",
}  # fmt: skip


def product(pixel: Tensor, weight: Tensor) -> Tensor:
    return pixel * weight


def opaque_product(pixel: Tensor, weight: Tensor) -> Tensor:
    """A product that is no convolution to hesse: `out=None` hides it, at no cost."""
    return torch.mul(pixel, weight, out=None)


def tangent(pixel: Tensor, weight: Tensor) -> Tensor:
    return torch.tan(pixel + weight)


def distance(pixel: Tensor, weight: Tensor) -> Tensor:
    return (pixel - weight).abs()


FUNCTIONS = {"multiply": opaque_product, "tangent": tangent, "distance": distance}


def by_hand(case: Case, weight: Tensor) -> Callable[[Tensor], Tensor]:
    """All terms at once, from `unfold`."""
    fn = FUNCTIONS[case.what]

    def run(x: Tensor) -> Tensor:
        columns = F.unfold(x, case.kernel)[:, None]
        terms = fn(columns, weight.flatten(1)[None, :, :, None])
        out = terms.prod(2) if case.what == "tangent" else terms.sum(2)
        return out.unflatten(2, (x.shape[2] - case.kernel + 1, -1))

    return run


def make(case: Case, way: str) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor] | None:
    """The function, its input and its weight; None where the way does not offer the case."""
    generator = torch.Generator().manual_seed(0)
    channels = case.shape[1]
    x = torch.rand(case.shape, generator=generator)
    weight = nn.Parameter(torch.rand(case.filters, channels, case.kernel, case.kernel, generator=generator) * 0.4 + 0.3)
    if way == "conv2d":
        return (lambda x: F.conv2d(x, weight), x, weight) if case.what == "multiply" else None
    if way == "hand":
        return by_hand(case, weight), x, weight
    if way == "hesse" and case.what != "multiply":
        return None
    module = ReceptiveFieldConv2d(
        product if way == "hesse" else FUNCTIONS[case.what], channels, case.filters, case.kernel, bias=False,
        reduce="prod" if case.what == "tangent" else "sum", compile="native" if way == "native" else "off",
    )  # fmt: skip
    module.weight = weight
    return module, x, weight
