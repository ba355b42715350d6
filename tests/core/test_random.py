"""Random numbers: reproducible from a generator or from keys, of the right distribution, the global state left alone."""

from __future__ import annotations

import pytest
import torch

from hesse.core.errors import LeafError
from hesse.core.random import hashed_uniform, make_generator, normal, rademacher, seed_of

CPU = torch.device("cpu")


@pytest.mark.parametrize("draw", [normal, rademacher])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64])
def test_reproducible_and_typed(draw, dtype: torch.dtype, untouched: None) -> None:
    first, second, third = (draw((40, 3), dtype, CPU, make_generator(seed)) for seed in (5, 5, 6))
    assert first.dtype == dtype
    assert first.shape == (40, 3)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_default_seed_is_fixed_whatever_the_global_seed() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        first = torch.rand(3, generator=make_generator())
        torch.manual_seed(321)
        assert torch.equal(first, torch.rand(3, generator=make_generator()))
    assert make_generator().device == CPU


def test_one_generator_goes_on(untouched: None) -> None:
    generator = make_generator(1)
    assert not torch.equal(*(normal((5,), torch.float64, CPU, generator) for _ in range(2)))


def test_complex_normal_has_unit_variance_in_all() -> None:
    z = normal((100_000,), torch.complex128, CPU, make_generator(1))
    assert abs(z.real.var() - 0.5) < 0.01
    assert abs(z.imag.var() - 0.5) < 0.01


KEYS = torch.tensor([3, -8, 2**62, 4, 5])  # neighbors among them


def uniform(keys=KEYS, seed=1, stream=0, shape=(2, 3), dtype=torch.float64):
    return hashed_uniform(keys, seed, stream, shape, dtype, CPU)


def test_hashed_uniform_depends_on_the_sample_and_not_on_its_batch(untouched: None) -> None:
    numbers = uniform()
    assert numbers.shape == (5, 2, 3)
    order = torch.tensor([4, 1])
    assert torch.equal(uniform(KEYS[order]), numbers[order])
    assert torch.equal(uniform(shape=(6,)).reshape(5, 2, 3), numbers)
    assert torch.equal(uniform(shape=(9,))[:, :6].reshape(5, 2, 3), numbers)
    assert uniform(shape=()).shape == (5,)
    assert uniform(torch.empty(0, dtype=torch.int64)).shape == (0, 2, 3)
    assert not (uniform(seed=2) == numbers).any()
    assert not (uniform(stream=1) == numbers).any()
    assert not (uniform(seed=2, stream=0) == uniform(seed=1, stream=1)).any()
    assert torch.equal(KEYS, torch.tensor([3, -8, 2**62, 4, 5]))


@pytest.mark.parametrize(
    "axis", ["places", "keys", "seeds", "streams"], ids=lambda axis: f"{axis} that follow each other"
)
def test_hashed_uniform_is_uniform_and_uncorrelated(axis: str) -> None:
    n = 200_000
    few = torch.arange(n // 1000)
    numbers = {
        "places": lambda: uniform(KEYS[:1], shape=(n,))[0],
        "keys": lambda: uniform(torch.arange(n), shape=())[:],
        "seeds": lambda: torch.cat([uniform(few, seed=seed, shape=(5,)).T.flatten() for seed in range(200)]),
        "streams": lambda: torch.stack([uniform(few, stream=stream, shape=(5,)) for stream in range(200)], -1).flatten(),
    }[axis]()
    assert len(numbers) == n
    assert abs(numbers.mean() - 1 / 2) < 5 * (1 / 12 / n) ** 0.5
    assert abs(numbers.var() - 1 / 12) < 5 * (1 / 180 / n) ** 0.5  # the variance of (u - 1/2)^2 is 1/180
    observed = torch.histc(numbers, 256, 0, 1)
    chi2 = ((observed - n / 256).square() / (n / 256)).sum()
    assert abs(chi2 - 255) < 5 * (2 * 255) ** 0.5
    pairs = torch.histc(torch.floor(numbers[1:] * 16) * 16 + torch.floor(numbers[:-1] * 16) + 0.5, 256, 0, 256)
    chi2 = ((pairs - n / 256).square() / (n / 256)).sum()
    assert abs(chi2 - 255) < 6 * (2 * 255) ** 0.5
    for lag in (1, 2, 5, 200, 1000):
        correlation = 12 * ((numbers[lag:] - 0.5) * (numbers[:-lag] - 0.5)).mean()
        assert abs(correlation) < 5 / (n - lag) ** 0.5, lag


@pytest.mark.parametrize(
    ("dtype", "bits"), [(torch.float64, 53), (torch.float32, 24), (torch.float16, 11), (torch.bfloat16, 8)]
)
def test_hashed_uniform_stays_below_one_in_every_precision(dtype: torch.dtype, bits: int) -> None:
    numbers = uniform(torch.arange(300), shape=(4000,), dtype=dtype)
    assert numbers.dtype == dtype
    assert numbers.min() >= 0
    assert numbers.double().max() <= 1 - 2.0**-bits
    steps = numbers.double() * 2.0**bits
    assert torch.equal(steps, steps.round())
    assert abs(numbers.double().mean() - (0.5 - 2.0 ** -(bits + 1))) < 5 * (1 / 12 / numbers.numel()) ** 0.5


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_hashed_uniform_is_real(dtype: torch.dtype) -> None:
    with pytest.raises(LeafError, match="real floating dtype"):
        uniform(dtype=dtype)


def test_seeds_come_from_the_generator(untouched: None) -> None:
    generator = make_generator(3)
    first, second = seed_of(generator), seed_of(generator)
    assert first != second
    assert first == seed_of(make_generator(3))
    assert seed_of(None) == seed_of(None) == seed_of(make_generator())
    assert 0 <= first < 2**63
