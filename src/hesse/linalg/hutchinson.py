"""Means of random samples, drawn in blocks until the standard error is small enough."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from hesse.core.progress import track

FEWEST = 16  # samples before a standard error is trusted
_MOST_AT_ONCE = 64

Draw = Callable[[int], tuple[Tensor, float]]


class Moments:
    """Mean and spread of samples ``[k, ...]`` that come in blocks (Chan, Golub, LeVeque: The American
    Statistician 37, 1983), entry by entry.

    Attributes:
        count: samples so far.
        mean: their mean ``[...]``.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor = torch.zeros((), dtype=torch.float64)
        self._spread: Tensor = torch.zeros((), dtype=torch.float64)

    def add(self, samples: Tensor) -> None:
        """Take in a block of at least one sample."""
        fresh = len(samples)
        block_mean = samples.mean(0)
        within = torch.linalg.vector_norm(samples - block_mean, dim=0).square()
        if self.count == 0:
            self.mean, self._spread = torch.zeros_like(block_mean), torch.zeros_like(within)
        shift, total = block_mean - self.mean, self.count + fresh
        self._spread = self._spread + within + shift.abs().square() * (self.count * fresh / total)
        self.mean = self.mean + shift * (fresh / total)
        self.count = total

    @property
    def errors(self) -> Tensor:
        """Standard error of each entry of the mean; infinite for fewer than two samples.

        That of the sample variance, longer by the factor ``1 + 2 / count``: a bar from few samples is often too
        short (Student), and the more so where drawing stops once it looks short enough.
        """
        if self.count < 2:
            return torch.full_like(self._spread, math.inf)
        return (self._spread / (self.count - 1) / self.count).sqrt() * (1 + 2 / self.count)

    @property
    def error(self) -> float:
        """The 2-norm of `errors`."""
        return float(torch.linalg.vector_norm(self.errors))

    @property
    def size(self) -> float:
        """The 2-norm of `mean`."""
        return float(torch.linalg.vector_norm(self.mean))


@dataclass(frozen=True)
class Mean:
    """The mean of the samples so far.

    Attributes:
        value: the mean, of the shape of one sample.
        errors: standard errors (see `Moments.errors`), of the same shape.
        samples: how many.
        converged: whether the error is as small as was asked for.
    """

    value: Tensor
    errors: Tensor
    samples: int
    converged: bool


def next_count(taken: int, error: float, target: float) -> int:
    """How many samples to draw next, from how many more the present spread asks for."""
    missing = math.inf if target <= 0 else taken * ((error / target) ** 2 - 1)
    return int(min(max(missing, FEWEST // 2), _MOST_AT_ONCE))


def projected(taken: int, error: float, target: float) -> float:
    """How many samples in all the present spread asks for."""
    return math.inf if target <= 0 else taken * (error / target) ** 2


def sample_mean(draw: Draw, *, rtol: float, atol: float, most: int, exact_cost: float, at_once: int, label: str) -> Mean:
    """Draw until ``|standard errors| <= max(atol, rtol * |mean|)``, or until it is zero up to rounding.

    The norms are 2-norms over the entries of a sample.

    Args:
        draw: given a number, so many samples (numbers: on the CPU, in double precision) and the size of their
            rounding errors.
        rtol, atol: the tolerance.
        most: samples that may be drawn.
        exact_cost: give up as soon as more samples than this seem to be needed.
        at_once: samples that fit into memory.
        label: what progress calls it.
    """
    moments, wanted, converged = Moments(), FEWEST, False
    for _ in track(count(), label):
        wanted = min(wanted, at_once, most - moments.count)
        if wanted <= 0:
            break
        samples, noise = draw(wanted)
        moments.add(samples)
        error, taken = moments.error, moments.count
        target = max(atol, rtol * moments.size, noise)
        converged = taken >= FEWEST and error <= target
        if converged or (taken >= FEWEST and max(projected(taken, error, target), taken) > exact_cost):
            break
        wanted = next_count(taken, error, target)
    return Mean(moments.mean, moments.errors, moments.count, converged)
