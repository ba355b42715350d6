"""The direct solution, its condition number, and singular matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hesse.linalg.answer import lstsq_matrix, solve_cholesky, solve_matrix

from .counted import random_matrix, with_spectrum


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_solution_and_condition(dtype: torch.dtype) -> None:
    M, B = random_matrix(7, 7, dtype=dtype), random_matrix(3, 7, dtype=dtype, seed=1)
    found = solve_matrix(M, B)
    torch.testing.assert_close(found.value, (torch.linalg.inv(M) @ B.mT).mT)
    assert found.condition == pytest.approx(float(torch.linalg.cond(M, 1)), rel=1e-9) and not found.trouble


@pytest.mark.parametrize("least", [0.0, 1e-17])
def test_singular_matrices_get_the_least_squares_solution_and_say_so(least: float) -> None:
    M = with_spectrum(torch.tensor([least, 1.0, 2.0, 3.0], dtype=torch.float64))
    B = random_matrix(2, 4)
    found = solve_matrix(M, B)
    assert "singular" in found.trouble and found.condition == float("inf")
    torch.testing.assert_close(found.value, torch.linalg.lstsq(M, B.mT, driver="gelsd").solution.mT)


def test_exactly_singular() -> None:
    found = solve_matrix(torch.zeros(3, 3, dtype=torch.float64), random_matrix(2, 3))
    assert found.trouble and float(found.value.abs().max()) == 0


def test_half_precision_and_empty() -> None:
    M = torch.eye(3, dtype=torch.bfloat16) * 2
    assert torch.equal(solve_matrix(M, torch.ones(1, 3)).value, torch.full((1, 3), 0.5))
    assert solve_matrix(torch.zeros(0, 0), torch.zeros(2, 0)).value.shape == (2, 0)


@pytest.mark.parametrize(("size", "damping"), [(1e-200, 0.0), (1e160, 0.0), (1e160, 1.0), (1e-200, 1e-300)])
def test_least_squares_whose_squared_singular_values_are_no_numbers(size: float, damping: float) -> None:
    found = lstsq_matrix(size * torch.eye(3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64), damping)
    right = size / damping if damping**0.5 > size else 1 / size  # the other of the two is negligible
    torch.testing.assert_close(found.value, torch.full((1, 3), right, dtype=torch.float64))
    assert found.condition == pytest.approx(1)
    assert found.norm == pytest.approx(max(size, damping**0.5))


@pytest.mark.parametrize("way", [solve_matrix, solve_cholesky, lstsq_matrix])
@pytest.mark.parametrize("size", [1e36, 1.0, 1e-37])
def test_far_sizes_change_nothing_but_sizes(way: Any, size: float) -> None:
    """The inverse of the smallest has numbers that float32 does not."""
    M = with_spectrum(torch.logspace(-3, 0, 6, dtype=torch.float64))
    M = ((M + M.mT) / 2 * size).float()
    found = way(M, (M.double() @ torch.ones(6, dtype=torch.float64)).float()[None])
    torch.testing.assert_close(found.value, torch.ones(1, 6), rtol=2e-3, atol=2e-3)
    assert not found.trouble and 900 < found.condition < 6000
    if found.inverse_norm is not None:
        assert found.inverse_norm == pytest.approx(float(torch.linalg.inv(M.double() / size).norm()) / size, rel=1e-3)
    else:
        assert found.norm == pytest.approx(size, rel=1e-3)
