"""A receptive-field convolution as loops over single pixels; shares nothing with the library."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


def index(i: int, size: int, mode: str) -> int | None:
    """The pixel that stands at a padded position; None: the padding value."""
    if 0 <= i < size:
        return i
    if mode == "circular":
        return i % size
    if mode == "replicate":
        return min(max(i, 0), size - 1)
    if mode == "reflect":
        return -i if i < 0 else 2 * (size - 1) - i
    return None


def fold(reduce: str, terms: Sequence[Tensor]) -> Tensor:
    """One number from the terms of a window."""
    total = terms[0]
    if reduce == "logsumexp":
        largest = max(float(term.detach()) for term in terms)
        shift = largest if math.isfinite(largest) else 0.0  # exp of a tangent beside its pole is infinite
        total = (total - shift).exp()
        for term in terms[1:]:
            total = total + (term - shift).exp()
        return total.log() + shift
    for term in terms[1:]:
        if reduce in ("sum", "mean"):
            total = total + term
        elif reduce == "prod":
            total = total * term
        else:
            larger = bool(term > total)
            total = term if larger == (reduce == "max") and bool(term != total) else total
    return total / len(terms) if reduce == "mean" else total


@dataclass
class Case:
    """Options of a convolution, and the loops that compute it."""

    fn: Callable[[Any, Any], Any]
    kernel: tuple[int, ...]
    weight_shape: tuple[int, ...] = ()
    reduce: str = "sum"
    groups: int = 1
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    mode: str = "zeros"
    value: float = 0.0
    sizes: tuple[int, ...] = field(default=())

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``[N, O, *out]``, from ``x [N, C, *sizes]``."""
        axes = len(self.kernel)
        out = [
            (n + sum(p) - (k - 1) * d - 1) // s + 1
            for n, p, k, d, s in zip(x.shape[2:], self.padding, self.kernel, self.dilation, self.stride, strict=True)
        ]
        filters, channels = weight.shape[-axes - 2], weight.shape[-axes - 1]
        numbers = []
        for n in range(x.shape[0]):
            for o in range(filters):
                first = o // (filters // self.groups) * channels
                for place in itertools.product(*map(range, out)):
                    terms = [
                        self.fn(self.pixel(x[n, first + c], place, k), weight[(..., o, c, *k)])
                        for c in range(channels)
                        for k in itertools.product(*map(range, self.kernel))
                    ]
                    number = fold(self.reduce, terms)
                    numbers.append(number if bias is None else number + bias[o])
        return torch.stack(numbers).reshape(x.shape[0], filters, *out)

    def pixel(self, image: Tensor, place: Sequence[int], tap: Sequence[int]) -> Tensor:
        """What a tap sees at an output position."""
        at = []
        for axis, (p, k) in enumerate(zip(place, tap, strict=True)):
            i = p * self.stride[axis] + k * self.dilation[axis] - self.padding[axis][0]
            found = index(i, image.shape[axis], self.mode)
            if found is None:
                return image.new_tensor(self.value)
            at.append(found)
        return image[tuple(at)]
