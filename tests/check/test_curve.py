"""The curve of differences: second order in the step, then rounding; flat for a wrong derivative."""

from __future__ import annotations

import torch

from hesse.check import difference_curve


def square(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return ((out - target) ** 2).mean()


def test_the_curve_falls_with_the_square_of_the_step() -> None:
    params = {"a": torch.linspace(0.5, 1.5, 4), "b": torch.ones(())}
    data = (torch.linspace(0, 2, 12).reshape(3, 4), torch.ones(3))
    curve = difference_curve((lambda p, x: torch.exp(x @ p["a"]) * p["b"], params), square, data, "a")
    by_step = dict(curve)
    steps = [h for h, _ in curve]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] == 1
    ratio = by_step[steps[4]] / by_step[steps[6]]  # 1e-2 against 1e-3
    assert 80 < ratio < 120
    assert min(by_step.values()) < 1e-8
    assert by_step[steps[-1]] > min(by_step.values())


def test_the_curve_of_a_wrong_derivative_stays() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    params = {"a": torch.linspace(0.5, 1.5, 4)}
    data = (torch.linspace(0, 2, 12).reshape(3, 4), torch.ones(3))
    curve = difference_curve((lambda p, x: x @ Doubled.apply(p["a"]), params), square, data, "a")
    errors = [error for h, error in curve if 1e-8 < h < 1e-2]
    assert max(errors) / min(errors) < 1.01
    assert min(errors) > 1e-3
