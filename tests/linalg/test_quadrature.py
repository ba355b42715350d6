"""Gauss and Gauss-Radau rules of Lanczos runs against the spectral measures that they integrate."""

from __future__ import annotations

import pytest
import torch

from hesse.linalg.quadrature import LanczosRuns

from .counted import HERMITIAN, Counted, random_matrix, with_spectrum

VALUES = torch.linspace(0.5, 4, 90, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_exact_for_polynomials(dtype: torch.dtype) -> None:
    A = Counted(with_spectrum(VALUES, dtype), tags=HERMITIAN)
    starts = random_matrix(3, 90, dtype=dtype, seed=2)
    runs = LanczosRuns(A, starts)
    runs.grow(6)
    assert runs.products == 18 == sum(A.blocks) and runs.steps == 6
    power = starts.conj()
    for p in range(13):
        truth = (power * starts).sum(-1).real  # v^H A^p v
        power = power @ A.matrix
        gauss, radau = ((nodes**p * weights).sum(-1) * runs.squared_norms for nodes, weights in (runs.gauss(), runs.radau(0.2)))
        if p < 12:
            torch.testing.assert_close(gauss, truth, rtol=1e-11, atol=0)
        else:
            assert float(((gauss - truth) / truth).abs().min()) > 1e-8
        torch.testing.assert_close(radau, truth, rtol=1e-11, atol=0)
    assert torch.allclose(runs.radau(0.2)[0][:, 0], torch.tensor(0.2, dtype=torch.float64))


def test_the_rules_lie_on_either_side() -> None:
    M = with_spectrum(torch.logspace(1, -3, 90))
    starts = random_matrix(4, 90, seed=5)
    values, Q = torch.linalg.eigh(M)
    truth = ((starts @ Q).square() * values.log()).sum(-1)
    runs = LanczosRuns(Counted(M, tags=HERMITIAN), starts)
    gap = torch.full((4,), torch.inf, dtype=torch.float64)
    for steps in (5, 10, 20, 35):
        runs.grow(steps)
        upper, lower = ((w * x.log()).sum(-1) * runs.squared_norms for x, w in (runs.gauss(), runs.radau(5e-4)))
        assert bool((lower <= truth).all()) and bool((truth <= upper).all())
        assert bool((upper - lower < gap).all())
        gap = upper - lower


def test_runs_end_by_themselves() -> None:
    values = torch.tensor([2.0] * 40 + [3.0] * 30 + [7.0] * 5, dtype=torch.float64)
    M = with_spectrum(values)
    eigenvector = torch.linalg.eigh(M).eigenvectors[:, -1]
    runs = LanczosRuns(Counted(M, tags=HERMITIAN), torch.stack([random_matrix(75), 3 * eigenvector]))
    runs.grow(30)
    assert runs.is_exact and runs.steps <= 4
    nodes, weights = runs.gauss()
    assert bool(torch.isfinite(nodes).all()) and float(nodes.min()) > 1.9
    assert float((weights * nodes)[1].sum()) == pytest.approx(7) and float(runs.squared_norms[1]) == pytest.approx(9)
    for node in nodes[0][weights[0] > 1e-12]:
        assert float((node - torch.tensor([2.0, 3, 7])).abs().min()) < 1e-9
