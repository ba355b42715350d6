"""Determinants are those of the dense matrix, and the evidence chooses a prior that generalizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn


def gauss_newton(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    parameters, total = list(model.parameters()), 0.0
    for row in inputs:
        scores = model(row[None])[0]
        rows = [torch.autograd.grad(score, parameters, retain_graph=True) for score in scores]
        J = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
        p = scores.detach().softmax(0)
        total = total + J.T @ (p.diag() - torch.outer(p, p)) @ J
    return total


def test_determinants(example) -> None:
    module = example("laplace_marginal_likelihood")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 5)).double()
    data = (torch.randn(11, 4, dtype=torch.float64), torch.randint(5, (11,)))
    halves = module.half_log_determinants(model, data, 0.7)
    G = gauss_newton(model, data[0])
    assert halves["exact"] == pytest.approx(torch.logdet(G + 0.7 * torch.eye(len(G), dtype=G.dtype)).item() / 2, abs=1e-10)
    assert halves["diagonal"] == pytest.approx((G.diagonal() + 0.7).log().sum().item() / 2, abs=1e-10)
    assert halves["exact"] < halves["EKFAC"] < halves["diagonal"] and halves["exact"] < halves["KFAC"] < halves["diagonal"]


def test_the_evidence_chooses_well(example, tmp_path) -> None:
    result = example("laplace_marginal_likelihood").main(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    best = max(result.test_log_likelihood)
    assert result.test_log_likelihood[result.chosen("exact")] > best - 0.02
    assert 0 < result.chosen("exact") < len(result.test_log_likelihood) - 1
    assert result.chosen("diagonal") < result.chosen("exact"), "the diagonal asks for a stronger prior"
