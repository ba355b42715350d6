"""Means of random samples, drawn in blocks until the standard error is small enough."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from torch import Tensor

from hesse.core.progress import track

FEWEST = 16  # samples before a standard error is trusted
_MOST_AT_ONCE = 64

Draw = Callable[[int], tuple[Tensor, float]]


@dataclass(frozen=True)
class Mean:
    """The mean of the samples so far.

    Attributes:
        value: the mean.
        standard_error: from the sample variance.
        samples: how many.
        converged: whether the error is as small as was asked for.
    """

    value: complex
    standard_error: float
    samples: int
    converged: bool


def next_count(taken: int, error: float, target: float) -> int:
    """How many samples to draw next, from how many more the present spread asks for."""
    missing = math.inf if target <= 0 else taken * ((error / target) ** 2 - 1)
    return int(min(max(missing, FEWEST // 2), _MOST_AT_ONCE))


def sample_mean(draw: Draw, *, rtol: float, atol: float, most: int, exact_cost: float, at_once: int, label: str) -> Mean:
    """Draw until ``standard_error <= max(atol, rtol * |mean|)``, or until it is zero up to rounding.

    Args:
        draw: given a number, so many samples (on the CPU, in double precision) and the size of their rounding
            errors.
        rtol, atol: the tolerance.
        most: samples that may be drawn.
        exact_cost: give up as soon as more samples than this seem to be needed.
        at_once: samples that fit into memory.
        label: what progress calls it.
    """
    taken, mean, spread, wanted = 0, 0.0 + 0.0j, 0.0, FEWEST
    error, converged = math.inf, False
    for _ in track(count(), label):
        wanted = min(wanted, at_once, most - taken)
        if wanted <= 0:
            break
        samples, noise = draw(wanted)
        block_mean = complex(samples.mean().item())
        shift = block_mean - mean
        spread += float((samples - block_mean).abs().square().sum())
        spread += abs(shift) ** 2 * taken * wanted / (taken + wanted)
        mean += shift * wanted / (taken + wanted)
        taken += wanted
        error = math.sqrt(spread / max(taken - 1, 1) / taken) if taken > 1 else math.inf
        target = max(atol, rtol * abs(mean), noise)
        converged = taken >= FEWEST and error <= target
        projected = math.inf if target <= 0 else taken * (error / target) ** 2
        if converged or (taken >= FEWEST and max(projected, taken) > exact_cost):
            break
        wanted = next_count(taken, error, target)
    return Mean(mean, error, taken, converged)
