"""Spectral densities against broadened known eigenvalues."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hesse.core.errors import NotConvergedError, StructureError, SymmetryError
from hesse.linalg.spectrum import spectrum
from hesse.operators import Diagonal, Identity, Kronecker

from .counted import HERMITIAN, PSD, Counted, random_matrix, seeded, tree_space, with_spectrum

F64, C128 = torch.float64, torch.complex128
N = 600
VALUES = torch.cat([torch.linspace(-0.5, 1, N - 8, dtype=F64) ** 3, torch.linspace(3, 6, 8, dtype=F64)])


def blurred(values: Tensor, grid: Tensor, width: float) -> Tensor:
    total = torch.zeros_like(grid)
    for value in values.double():
        total += torch.distributions.Normal(value, width).log_prob(grid).exp()
    return total / len(values)


@pytest.mark.parametrize("dtype", [F64, C128, torch.float32])
def test_exact(dtype: torch.dtype) -> None:
    values = torch.linspace(-1, 2, 70)
    A = Counted(with_spectrum(values, dtype), tree_space(70, dtype), tree_space(70, dtype), HERMITIAN)
    S = spectrum(A, bandwidth=0.1)
    torch.testing.assert_close(S.density, blurred(values, S.grid, 0.1), rtol=0, atol=1e-5)
    assert S.is_exact and S.products == 70 and S.dim == 70 and not S.error.any()
    torch.testing.assert_close(S.nodes[0], values.double(), rtol=0, atol=1e-5)
    assert float(S.count(-0.51, 1.01)) == pytest.approx(int(((values >= -0.51) & (values <= 1.01)).sum()))
    assert float(S.moment(2)) == pytest.approx(float(values.double().square().mean()), rel=1e-5)
    assert S.moment(2).standard_error == 0


@pytest.mark.parametrize("dtype", [F64, C128])
def test_quadrature(dtype: torch.dtype) -> None:
    A = Counted(with_spectrum(VALUES, dtype), tree_space(N, dtype), tree_space(N, dtype), HERMITIAN)
    S = spectrum(A, bandwidth=0.15, atol=0.04)
    step = float(S.grid[1] - S.grid[0])
    assert not S.is_exact and S.products == sum(A.blocks) and S.dim == N
    assert float(S.density.sum()) * step == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(S.weights.sum(1), torch.ones(len(S.weights), dtype=F64))
    assert float(S.error.sum()) * step <= 0.04
    truth = blurred(VALUES, S.grid, 0.15)
    assert float((S.density - truth).abs().sum()) * step < 0.08
    inside = ((S.density - truth).abs() <= 2.5 * S.error + 1e-4).double()  # the band holds most of the mass
    assert float((inside * truth).sum() / truth.sum()) > 0.8
    assert float(S.nodes.max()) == pytest.approx(6, abs=1e-3)
    for p, size in ((0, 1.0), (1, float(VALUES.mean())), (3, float((VALUES**3).mean()))):
        moment = S.moment(p)
        assert abs(moment - size) <= 4 * moment.standard_error + 1e-12
    outliers = S.count(2, math.inf)
    assert abs(outliers - 8) <= 4 * outliers.standard_error and 0 < outliers.standard_error < 3


def test_counts_are_calibrated() -> None:
    M = with_spectrum(VALUES[-160:])  # 8 outliers beyond a bulk
    inside = 0
    for seed in range(100):
        found = spectrum(Counted(M, tags=HERMITIAN), method="lanczos", bandwidth=0.5, atol=0.2, generator=seeded(seed)).count(
            2, 9
        )
        inside += abs(found - 8) <= 2 * found.standard_error
    assert inside / 100 >= 0.93 - 3 * math.sqrt(0.93 * 0.07 / 100)


def test_structure() -> None:
    R = with_spectrum(torch.linspace(1, 2, 5))
    A = Kronecker(R, R, tags=PSD) + 2 * Identity(Kronecker(R, R).in_space)
    S = spectrum(A)
    expected = (torch.outer(torch.linspace(1, 2, 5), torch.linspace(1, 2, 5)).flatten() + 2).sort().values
    torch.testing.assert_close(S.nodes[0], expected.double(), rtol=1e-6, atol=0)
    assert S.products == 0 and S.bandwidth == pytest.approx(0.03)
    many = torch.rand(200_000, dtype=F64, generator=seeded())
    S = spectrum(Diagonal(many), bandwidth=0.02)
    middle = S.density[(S.grid > 0.2) & (S.grid < 0.8)]
    torch.testing.assert_close(middle, torch.ones_like(middle), rtol=0.05, atol=0)
    one = spectrum(Identity(tree_space(50)))
    assert float(one.count(0.999, 1.001)) == 50 and one.density.sum() * (one.grid[1] - one.grid[0]) == pytest.approx(
        1, abs=1e-5
    )


def test_plot_and_repr() -> None:
    A = Counted(with_spectrum(VALUES), tags=HERMITIAN)
    for S in (spectrum(A, bandwidth=0.3, atol=0.2), spectrum(A, method="exact")):
        figure = S.plot()
        axes, rug = figure.axes
        assert axes.get_yscale() == "log" and "eigenvalue" in rug.get_xlabel()
        assert (axes.get_legend() is None) == S.is_exact  # the band
        low, high = axes.get_ylim()
        assert 0 < low < float(S.density.max()) < high
    text = repr(spectrum(Counted(A.matrix, tags=HERMITIAN), bandwidth=0.3, atol=0.2))
    assert "600 eigenvalues" in text and "16 probes" in text and "█" in text
    assert "exact, 600 products" in repr(spectrum(A, method="exact"))


def test_limits_and_refusals() -> None:
    A = Counted(with_spectrum(VALUES), tags=HERMITIAN)
    with pytest.raises(NotConvergedError, match="larger bandwidth") as caught:
        spectrum(A, bandwidth=0.001, max_products=16 * 12)
    assert caught.value.partial.products == sum(A.blocks) <= 16 * 12
    with pytest.warns(RuntimeWarning, match="error band"):
        spectrum(A, bandwidth=0.001, max_products=16 * 12, on_failure="return")
    with pytest.raises(SymmetryError, match="singular values"):
        spectrum(Counted(random_matrix(4, 4)))
    with pytest.raises(StructureError, match="bandwidth"):
        spectrum(A, bandwidth=0.0)
    S = spectrum(A, method="exact")
    with pytest.raises(StructureError, match="low <= high"):
        S.count(2, 1)
    with pytest.raises(StructureError, match="p="):
        S.moment(-1)
