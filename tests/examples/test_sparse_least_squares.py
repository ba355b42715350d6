"""The map is the least-squares solution, and nearer to the truth than the odometry."""

from __future__ import annotations

import pytest
import torch


def gradient_by_autograd(residual, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(0.5 * residual(x).square().sum(), x)[0]


def test_measurements_without_noise_are_explained_by_the_truth(example) -> None:
    module = example("sparse_least_squares")
    data = module.survey(60)
    exact = module.relative(data.truth, data.start, data.end)
    clean = module.Survey(data.truth, data.start, data.end, exact, data.errors)
    assert module.residual_of(clean)(data.truth.reshape(-1)).abs().max() < 1e-10
    torch.testing.assert_close(clean.odometry, data.truth)
    assert (data.measured - exact).abs().max() > 0.01


def test_the_fit_is_a_minimum(example) -> None:
    module = example("sparse_least_squares")
    data = module.survey(80)
    residual, first = module.residual_of(data), data.odometry.reshape(-1)
    jacobian, _ = module.by_colors(residual, first)
    fit = module.levenberg_marquardt(residual, jacobian, first)
    assert sorted(fit.costs, reverse=True) == fit.costs and fit.costs[-1] < residual(data.truth.reshape(-1)).square().sum() / 2
    scale = gradient_by_autograd(residual, first).abs().max()
    assert gradient_by_autograd(residual, fit.x).abs().max() < 1e-6 * scale


def test_the_three_jacobians_agree(example) -> None:
    module = example("sparse_least_squares")
    data = module.survey(30)
    residual, x = module.residual_of(data), data.odometry.reshape(-1)
    ours, prepared = module.by_colors(residual, x)
    y = x.clone().requires_grad_()
    exact = torch.stack([torch.autograd.grad(r, y, retain_graph=True)[0] for r in residual(y)])
    torch.testing.assert_close(torch.from_numpy(ours(x).toarray()), exact, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.from_numpy(module.by_rows(residual)(x).toarray()), exact, rtol=1e-12, atol=1e-12)
    differences = torch.from_numpy(module.by_differences(residual, prepared)(x).toarray())
    assert (differences - exact).abs().max() < 1e-4 * exact.abs().max()


def test_the_map_is_drawn(example, tmp_path) -> None:
    module = example("sparse_least_squares")
    result = module.main(tmp_path / "figure.png", 400, (20, 40), 20)
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert result.after < 0.7 * result.before
    closures = len(result.data.start) - 399
    assert result.fit.costs[-1] == pytest.approx(1.5 * closures, rel=0.3)  # half of chi squared with 3 degrees each
    assert result.times["by colors"].keys() == {60, 120} and result.times["dense"].keys() == {60}
