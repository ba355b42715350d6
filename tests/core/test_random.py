"""Random numbers: reproducible from a generator, the global state left alone."""

from __future__ import annotations

import pytest
import torch

from hesse.core.random import make_generator, normal, rademacher

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
