"""Spectral densities of known matrices: what is estimated, and what the memory allows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hesse.core.errors import MemoryBudgetError
from hesse.core.memory import memory
from hesse.operators import Dense, Tag
from hesse.report.densities import Density, bandwidth_of, density_of, outer_eigenvalues


def operator(values: Tensor) -> Dense:
    Q = torch.linalg.qr(torch.randn(len(values), len(values), generator=source(), dtype=torch.float64)).Q
    A = Q @ torch.diag(values) @ Q.T
    return Dense((A + A.T) / 2, tags=frozenset({Tag.SYMMETRIC, Tag.HERMITIAN}))


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


VALUES = torch.cat([torch.tensor([40.0, 30.0, -2.0]), torch.linspace(-1, 1, 41), torch.zeros(556)]).double()


def test_eigenvalues_that_were_taken_out_have_peaks_without_error() -> None:
    A = operator(VALUES)
    outer = outer_eigenvalues(A, source())
    found = density_of(A, outer, source())
    width = bandwidth_of([outer], [found])
    assert (outer.width, outer.smallest) == (pytest.approx(42, rel=1e-3), pytest.approx(-2, rel=1e-2))
    assert not found.is_exact and found.products <= 360
    grid = torch.tensor([40.0, 35.0, 30.0, 0.0], dtype=torch.float64)
    heights = found.heights(grid, width)
    assert heights["height"][:3] == pytest.approx([1, 0, 1], abs=1e-4)
    assert max(heights["error"][:3]) < 1e-4
    exact = torch.exp(-0.5 * (VALUES / width) ** 2).sum().item()
    assert abs(heights["height"][3] - exact) <= 4 * heights["error"][3]
    assert found.ends == (pytest.approx(-2, abs=0.05), pytest.approx(40, rel=1e-3))


def test_counts_lie_within_their_errors() -> None:
    A = operator(VALUES)
    outer, distances = outer_eigenvalues(A, source()), []
    for seed in range(6):
        found = density_of(A, outer, source(seed))
        for limit, exact in ((-1.5, 1), (-0.51, 11), (-0.19, 18)):
            count = found.below(limit)
            assert count.standard_error < 3
            distances.append(abs(float(count) - exact) / count.standard_error)
        assert float(found.below(-3.0)) == float(found.below(-3.0).standard_error) == 0
    assert sum(distance < 2 for distance in distances) >= 15  # of 18
    assert max(distances) < 4


def test_the_error_of_a_count_holds_half_the_node_at_its_edge() -> None:
    nodes, weights = torch.tensor([[-2.0, -1.0, 3.0]] * 2), torch.tensor([[0.1, 0.2, 0.7]] * 2)
    found = Density(torch.tensor([-5.0]), 100, (nodes, weights), (nodes, weights), 6)
    count = found.below(-0.5)
    assert (float(count), count.standard_error) == (pytest.approx(31), pytest.approx(10))
    exact = Density(torch.zeros(0), 100, (nodes[:1], weights[:1]), None, 3)
    assert (float(exact.below(-0.5)), exact.below(-0.5).standard_error) == (pytest.approx(30), 0)


def test_small_matrices_are_exact() -> None:
    values = torch.tensor([3.0, 1.0, -1.0], dtype=torch.float64)
    found = density_of(operator(values), outer_eigenvalues(operator(values), source()), source())
    assert found.is_exact and found.resolution == 0
    height = found.heights(torch.tensor([1.0, 1.1], dtype=torch.float64), 0.1)
    assert height["height"] == pytest.approx([1, math.exp(-0.5)])


def test_short_memory_takes_fewer_probes_and_no_memory_is_refused() -> None:
    A = operator(VALUES)
    outer = outer_eigenvalues(A, source())
    per_vector = 8 * A.shape[0]
    with memory(math.ceil(per_vector * 3 * 50 / 0.65)):  # runs of 30 steps take 50 vectors, which get 65 %
        assert density_of(A, outer, source()).rule[0].shape == (3, 30)
    with memory(2 * per_vector * 12), pytest.raises(MemoryBudgetError, match="spectral density"):
        density_of(A, outer, source())
