"""Hutch++: its error bars, its stages, and its limits."""

from __future__ import annotations

import pytest
import torch

from hesse.core.errors import NotConvergedError
from hesse.linalg import trace

from .counted import HERMITIAN, Counted, random_matrix, seeded, tree_space, with_spectrum
from .spectra import DIM, LEAST_INSIDE, MATRICES


@pytest.mark.parametrize("name", MATRICES)
def test_standard_errors_are_calibrated(name: str) -> None:
    M, tags = MATRICES[name]
    truth, inside, z = complex(M.trace()), 0, []
    for seed in range(200):
        A = Counted(M, tree_space(DIM, M.dtype), tree_space(DIM, M.dtype), tags)
        found = trace(A, method="hutch++", rtol=0.1 if name == "indefinite" else 0.03, generator=seeded(seed))
        assert 0 < found.standard_error <= 0.1 * abs(found) and found.products == sum(A.blocks) and not A.calls["mv"]
        error = abs(complex(found) - truth)
        inside += error <= 2 * found.standard_error
        z.append(error / found.standard_error)
    assert inside / 200 >= LEAST_INSIDE
    assert 0.7 < float(torch.tensor(z).square().mean().sqrt()) < 1.3


def test_stages_reuse_products_and_beat_plain_signs_on_decay() -> None:
    M = with_spectrum(torch.arange(1, 501, dtype=torch.float64) ** -2)
    A = Counted(M, tags=HERMITIAN)
    found = trace(A, method="hutch++", rtol=1e-3)
    assert abs(found - float(M.trace())) < 4 * found.standard_error <= 4e-3 * found
    assert 48 < found.products == sum(A.blocks) < 150
    # a third each: two blocks of signs, then as many of the basis, stage by stage
    assert A.blocks[:6] == [16, 16, 16, 8, 8, 8]


def test_unbiased() -> None:
    M = random_matrix(150, 150, dtype=torch.complex128) + torch.eye(150)
    draws = [complex(trace(Counted(M), method="hutch++", rtol=100.0, generator=seeded(s))) for s in range(300)]
    values = torch.tensor(draws)
    assert float((values.mean() - M.trace()).abs() / (values.std() / 300**0.5)) < 3


def test_low_rank_zero_and_small() -> None:
    M = random_matrix(200, 5) @ random_matrix(5, 200, seed=1)
    assert trace(Counted(M), method="hutch++", rtol=1e-8) == pytest.approx(float(M.trace()), abs=1e-9)
    assert trace(Counted(0 * M), method="hutch++") == 0
    small = Counted(random_matrix(30, 30))
    found = trace(small, method="hutch++")
    assert found.products == 30 and found.standard_error == 0


@pytest.mark.parametrize("memory", [None, 600_000, 1_280_000])
@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
@pytest.mark.parametrize("most", [1, 16, 17, 20, 40, 47, 100, 150])
def test_never_more_products_than_allowed_and_always_a_number(most: int, method: str, memory: int | None) -> None:
    M = with_spectrum(1 / torch.arange(1, 201, dtype=torch.float64))
    A = Counted(M, tags=HERMITIAN)
    with pytest.raises(NotConvergedError) as caught:
        trace(A, method=method, rtol=1e-9, max_products=most, memory=memory, generator=seeded(1))
    found = caught.value.partial
    assert 0 < found.products == sum(A.blocks) <= most
    assert 0 < found.value < 2 * float(M.trace())
    if most > 16:  # the fewest signs that an error is taken from
        assert abs(found.value - float(M.trace())) < 6 * found.standard_error < 6 * float(M.trace())


def test_limits() -> None:
    M = with_spectrum(torch.linspace(-1, 1.1, 300))
    with pytest.raises(NotConvergedError) as caught:
        trace(Counted(M), method="hutch++", rtol=1e-6, max_products=60)
    assert caught.value.partial.products == 48
    exact = trace(Counted(M), method="hutch++", rtol=1e-6)
    assert exact.standard_error == 0 and exact == pytest.approx(float(M.trace()), abs=1e-10)
