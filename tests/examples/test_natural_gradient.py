"""The natural gradient is what the dense Fisher matrix gives, and trains in fewer steps."""

from __future__ import annotations

import torch
from torch import nn


def fisher_matrix(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Class by class, sample by sample: the sum of p(c) g gᵀ, over N."""
    parameters, total = list(model.parameters()), 0.0
    for image in images:
        scores = model(image[None])[0].log_softmax(0)
        for score in scores:
            rows = torch.autograd.grad(score, parameters, retain_graph=True)
            row = torch.cat([r.flatten() for r in rows])
            total = total + score.detach().exp() * torch.outer(row, row)
    return total / len(images)


def small(example):
    module = example("natural_gradient")
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    batch = (torch.randn(6, 1, 3, 4, dtype=torch.float64), torch.tensor([0, 3, 1, 2, 2, 0]))
    parts = torch.autograd.grad(module.LOSS(model(batch[0]), batch[1]), list(model.parameters()))
    return module, model, batch, dict(zip(dict(model.named_parameters()), parts, strict=True))


def test_the_exact_step_solves_with_the_fisher_matrix(example) -> None:
    module, model, batch, gradient = small(example)
    step = module.exact(0.3, radius=1e9)(model, batch, gradient)
    F = fisher_matrix(model, batch[0])
    g = torch.cat([part.flatten() for part in gradient.values()])
    found = torch.cat([step[name].flatten() for name in gradient])
    residual = (F @ found + 0.3 * found - g).norm() / g.norm()
    assert residual < 0.1  # the tolerance that the example asks for
    assert (found / found.norm() - g / g.norm()).norm() > 0.1


def test_steps_stay_within_the_radius(example) -> None:
    module, model, batch, gradient = small(example)
    F, change = fisher_matrix(model, batch[0]), {}
    for radius in (1e9, 1e-3):
        step = module.exact(0.01, radius)(model, batch, gradient)
        flat = torch.cat([step[name].flatten() for name in gradient])
        change[radius] = (flat @ F @ flat / 2).item()
    assert change[1e9] > 0.01 and 2e-4 < change[1e-3] < 1.1e-3


def test_it_trains_in_fewer_steps_than_sgd_and_adam(example, tmp_path) -> None:
    runs = {run.name: run for run in example("natural_gradient").main(tmp_path / "figure.png")}
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    exact, kfac = runs["natural gradient, exact"], runs["natural gradient, KFAC"]
    sgd, adam = runs["SGD with momentum"], runs["Adam"]
    assert exact.losses[14] < 0.3 and exact.test_accuracy > 0.9
    assert exact.losses[14] < 0.5 * min(adam.losses[14], sgd.losses[14], kfac.losses[14])
    assert min(kfac.losses) < 0.3 and min(kfac.losses) < 0.5 * min(adam.losses[39], sgd.losses[39])
