"""Points with equal elements: directions that keep them equal, and sums of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from hesse.check import check_derivatives, check_module
from hesse.check.functions.case import like_values, tied

from ..planted import draw, planted


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equal_elements_stay_equal_and_zeros_zero(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.7, -0.7, 0.0], [1.3, 0.7, -1.3]], dtype=dtype)
    v = tied(x, torch.Generator().manual_seed(1))
    assert v[0, 0] == -v[0, 1] == v[1, 1]
    assert v[1, 0] == -v[1, 2]
    assert v[0, 2] == 0
    assert v[0, 0] / x[0, 0] != v[1, 0] / x[1, 0]


def test_factors_are_of_the_size_of_one_and_differ_between_calls() -> None:
    g = torch.Generator().manual_seed(2)
    values = draw(5000)
    first, second = like_values(values, g), like_values(values, g)
    assert abs(first.mean()) < 0.1
    assert abs(first.std() - 1) < 0.1
    assert abs((first * second).mean()) < 0.1


@pytest.mark.parametrize("seed", range(3))
def test_sums_of_equal_elements_do_not_vanish(seed: int) -> None:
    """A pool of power one computes sign(s) relu(|s|), whose gradient in torch is zero where a sum s is."""
    report = check_derivatives(lambda x: F.lp_pool2d(x, 1, 2), draw(2, 3, 6, 7, seed=seed), level="full")
    assert report.ok, str(report)


def test_a_gradient_that_all_of_several_maxima_get() -> None:
    f = planted(lambda x: x.amax(1), lambda g, x: g[:, None] * (x == x.amax(1, keepdim=True)))
    report = check_derivatives(f, draw(4, 5), level="full")
    assert report.verdict == "wrong"
    assert any("elements are equal" in finding.diagnosis for finding in report.findings)


class Block(torch.nn.Sequential):
    """Whose normalization's weight, at zero, puts all of a channel on the kink behind it."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            super().__init__(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.ReLU())


@pytest.mark.parametrize("seed", range(3))
def test_a_weight_at_zero_that_puts_many_outputs_on_a_kink(seed: int) -> None:
    report = check_module(
        Block(), draw(2, 1, 5, 5, seed=seed, dtype=torch.float32), level="full", generator=torch.Generator().manual_seed(seed)
    )
    assert report.ok, str(report)


def two_slopes(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x) - 0.6 * torch.relu(-x)


def hidden(w: torch.Tensor) -> torch.Tensor:
    return torch.relu(w * torch.linspace(-1, 2, 7, dtype=w.dtype)) @ torch.linspace(-3, 3, 7, dtype=w.dtype)


@pytest.mark.parametrize("f", [two_slopes, hidden])
def test_compositions_with_several_kinks_at_once(f: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """The gradient at zero by the chain rule is 0; the slopes on both sides may both be positive."""
    report = check_derivatives(f, draw(1), level="full")
    assert report.ok, str(report)


def per_channel(g: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return g * torch.where(x > 0, 1.0, w), (g * x.clamp(max=0)).sum(0)


def twice(g: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return g * torch.where(x > 0, 1.0, torch.where(x == 0, 3.0, w)), (g * x.clamp(max=0)).sum(0)


@pytest.mark.parametrize(("rule", "verdict"), [(per_channel, "ok"), (twice, "wrong")])
def test_the_slope_of_one_element_at_its_kink(rule: Callable[..., object], verdict: str) -> None:
    f = planted(lambda x, w: torch.where(x > 0, x, w * x), rule)
    report = check_derivatives(lambda leaves: f(*leaves), (draw(5, 3), draw(3, seed=1)), level="full")
    assert report.verdict == verdict, str(report)
    assert verdict == "ok" or any("only where an element is zero" in finding.diagnosis for finding in report.findings)


def median_loss(x: torch.Tensor) -> torch.Tensor:
    return x.median()


@pytest.mark.parametrize("seed", range(4))
def test_repeated_rows_of_data_with_ties(seed: int) -> None:
    x = torch.tensor([1.0, 1.0, 2.0, 3.0, 1.0], dtype=torch.float64)
    report = check_derivatives(median_loss, x, level="full", generator=torch.Generator().manual_seed(seed))
    assert report.ok, str(report)
