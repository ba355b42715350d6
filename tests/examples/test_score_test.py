"""p-values and standard errors are those of the textbook."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats


def closed_form(lengths: torch.Tensor, mean: float) -> float:
    """Rao's statistic with the expected information of (mu, sigma): n (mean - mu0)² / sigma0²."""
    statistic = len(lengths) * (lengths.mean() - mean) ** 2 / (lengths - mean).square().mean()
    return math.erfc((statistic.item() / 2) ** 0.5)


@pytest.mark.parametrize("mean", [0.2, 0.5, 0.8])
def test_the_score_test_is_the_textbook_one(example, mean: float) -> None:
    module = example("score_test")
    lengths = 0.6 + torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    # 200 data sets estimate the information to a few percent
    assert module.score_test(lengths, mean, "expected") == pytest.approx(closed_form(lengths, mean), abs=0.03)


def test_with_the_observed_information(example) -> None:
    module = example("score_test")
    lengths = torch.tensor([1.0, 1.5, 3.0, 2.5, 0.5, 2.2], dtype=torch.float64)
    sigma, residuals = (lengths - 1.2).square().mean().sqrt(), lengths - 1.2
    U = torch.stack([residuals.sum() / sigma**2, torch.zeros((), dtype=torch.float64)])  # sigma fits best
    across = 2 * residuals.sum() / sigma**3
    along = 3 * residuals.square().sum() / sigma**4 - 6 / sigma**2
    information = torch.stack([torch.stack([6 / sigma**2, across]), torch.stack([across, along])])
    expected = stats.chi2.sf((U @ torch.linalg.solve(information, U)).item(), df=1)
    assert module.score_test(lengths, 1.2, "observed") == pytest.approx(expected, rel=1e-8)


def test_tables_and_figure(example, tmp_path) -> None:
    p_values, model, fits = example("score_test").main(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert p_values["expected"] == pytest.approx(p_values["t-test"], abs=0.02)
    textbook = model.textbook_covariance()
    assert torch.allclose(model.information().covariance, textbook, rtol=1e-8)
    assert torch.allclose(fits.std(0), textbook.diagonal().sqrt(), rtol=0.2)
