"""Means of samples drawn in blocks: what they add up to, and when they stop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hesse.linalg.hutchinson import FEWEST, Mean, Moments, sample_mean

from .counted import seeded


def drawn(
    mean: complex, spread: float, rtol: float = 0.0, atol: float = 0.0, **limits: float
) -> tuple[Mean, Tensor, list[int]]:
    """The result, every sample that was drawn, and the sizes of the blocks."""
    generator, seen, sizes = seeded(), [], []

    def draw(count: int) -> tuple[Tensor, float]:
        dtype = torch.complex128 if isinstance(mean, complex) else torch.float64
        seen.append(mean + spread * torch.randn(count, dtype=dtype, generator=generator))
        sizes.append(count)
        return seen[-1], limits.get("noise", 0.0)

    found = sample_mean(
        draw,
        rtol=rtol,
        atol=atol,
        most=int(limits.get("most", 10_000)),
        exact_cost=limits.get("exact_cost", math.inf),
        at_once=int(limits.get("at_once", 1000)),
        label="test",
    )
    return found, torch.cat(seen), sizes


def bar(samples: Tensor) -> float:
    """The usual standard error of a mean, longer for few samples."""
    return float(samples.std()) / len(samples) ** 0.5 * (1 + 2 / len(samples))


@pytest.mark.parametrize("mean", [5.0, 5.0 - 2.0j])
def test_blocks_add_up_to_mean_and_standard_error(mean: complex) -> None:
    found, samples, sizes = drawn(mean, 3.0, rtol=0.02)
    assert found.converged and found.samples == len(samples) == sum(sizes) and len(sizes) > 3
    assert found.value == pytest.approx(complex(samples.mean()), rel=1e-12)
    assert float(found.errors) == pytest.approx(bar(samples), rel=1e-12)
    assert float(found.errors) <= 0.02 * abs(found.value)
    # and no sooner than needed by more than a block
    before = samples[: -sizes[-1]]
    assert bar(before) > 0.02 * abs(complex(before.mean()))


def test_the_first_error_is_not_trusted_before_enough_samples() -> None:
    found, _, sizes = drawn(5.0, 0.0, rtol=0.5, at_once=5)
    assert found.converged and found.samples >= FEWEST and max(sizes) <= 5


def test_absolute_tolerance_and_rounding() -> None:
    found, _, _ = drawn(0.0, 1.0, atol=0.1)
    assert found.converged and 60 < found.samples < 200
    found, _, _ = drawn(0.0, 1e-17, rtol=0.01, noise=1e-16)
    assert found.converged and found.samples == FEWEST


def test_limits() -> None:
    found, _, sizes = drawn(0.0, 1.0, rtol=0.01, most=100)
    assert not found.converged and found.samples == 100 and sizes == [16, 64, 20]
    found, _, _ = drawn(1.0, 1.0, rtol=0.01, exact_cost=500)  # 10000 would be needed
    assert not found.converged and found.samples == FEWEST


def test_vector_samples_stop_by_the_norm_of_their_errors() -> None:
    generator, seen = seeded(), []

    def draw(count: int) -> tuple[Tensor, float]:
        seen.append(torch.tensor([3.0, 4.0]) + torch.randn(count, 2, generator=generator))
        return seen[-1], 0.0

    found = sample_mean(draw, rtol=0.05, atol=0.0, most=1000, exact_cost=math.inf, at_once=1000, label="test")
    samples = torch.cat(seen)
    torch.testing.assert_close(found.value, samples.mean(0))
    n = len(samples)
    torch.testing.assert_close(found.errors, samples.std(0) / n**0.5 * (1 + 2 / n))
    assert found.converged and float(found.errors.norm()) <= 0.05 * float(found.value.norm())


def test_few_samples_have_no_error() -> None:
    moments = Moments()
    moments.add(torch.ones(1, 3))
    assert moments.count == 1 and bool(moments.errors.isinf().all()) and moments.error == math.inf
