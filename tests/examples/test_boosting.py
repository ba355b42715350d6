"""Derivatives are those of the closed form; boosting with them is scikit-learn's own."""

from __future__ import annotations

import torch


def test_derivatives_are_the_closed_form(example) -> None:
    module = example("boosting")
    prediction, target = torch.linspace(-1, 2, 7, dtype=torch.float64), torch.arange(1.0, 8.0, dtype=torch.float64)
    ratio = target * torch.exp(-prediction)
    gradient, curvature = module.gradient_and_curvature(prediction, target)
    assert torch.allclose(gradient, 1 - ratio, rtol=1e-12) and torch.allclose(curvature, ratio, rtol=1e-12)


def test_it_boosts_like_scikit_learn(example, tmp_path) -> None:
    curves = example("boosting").main(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    newton, peer = torch.tensor(curves["Newton boosting"]), torch.tensor(curves["scikit-learn, loss='gamma'"])
    assert ((newton - peer).abs() < 0.005).all()
    assert newton[-1] < 0.7 * newton[0]
