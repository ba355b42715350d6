"""The Gaussian negative log-likelihood with a learned variance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hesse.core.errors import DataError, StructureError, SymmetryError
from hesse.rules.losses import GaussianNLL, known_loss
from tests.rules.losses.oracles import assert_is, hessian, outer_of_gradient


def _drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _rule(loss: GaussianNLL) -> Any:
    rule = known_loss(loss)
    assert rule is not None
    return rule


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("rest", [(), (4,)])
def test_the_loss_is_pytorchs_at_the_variance(full: bool, rest: tuple[int, ...]) -> None:
    output, target = _drawn(5, 6, *rest, seed=0), _drawn(5, 3, *rest, seed=1)
    for reduction in ("mean", "sum", "none"):
        expected = F.gaussian_nll_loss(
            output[:, :3], target, output[:, 3:].exp(), full=full, reduction=reduction, eps=1e-30
        )
        loss = GaussianNLL(full=full, reduction=reduction)
        torch.testing.assert_close(loss(output, target), expected, rtol=1e-13, atol=1e-13)
        rule = _rule(loss)
        total, mass = float(rule.contributions(output, target).sum()), rule.mass(output, target)
        assert total / mass == pytest.approx(float(expected.sum()), rel=1e-13)
        assert mass == (target.numel() if reduction == "mean" else 1) and rule.additive == (reduction != "mean")
        assert rule.contributions(output, target).shape == target.shape


def test_the_constant_is_that_of_a_density() -> None:
    grid = torch.linspace(-30, 30, 60_001, dtype=torch.float64)[:, None]
    output = torch.tensor([[0.3, 0.8]], dtype=torch.float64).expand(len(grid), 2)
    density = (-GaussianNLL(full=True, reduction="none")(output, grid)).exp()
    assert float(density.sum()) * 60 / 60_000 == pytest.approx(1, rel=1e-10)
    constant = float(GaussianNLL(full=True)(output, grid) - GaussianNLL()(output, grid))
    assert constant == pytest.approx(0.5 * math.log(2 * math.pi))


@pytest.mark.parametrize("rest", [(), (2,)])
def test_curvature_is_the_hessian(rest: tuple[int, ...]) -> None:
    output, target = _drawn(3, 4, *rest, seed=0), _drawn(3, 2, *rest, seed=1)
    form = _rule(GaussianNLL()).curvature(output, target)
    assert_is(form, hessian(lambda out: GaussianNLL(reduction="none")(out, target), output))
    assert not form.is_psd
    with pytest.raises(SymmetryError, match="3 of 3 samples: a Gaussian's mean and log variance"):
        form.root(0)


def test_curvature_where_the_mean_is_right_has_roots() -> None:
    output = _drawn(3, 4, seed=0)
    form = _rule(GaussianNLL()).curvature(output, output[:, :2])
    assert form.is_psd
    assert_is(form, hessian(lambda out: GaussianNLL(reduction="none")(out, output[:, :2]), output))


def test_information_is_the_expected_square_of_the_gradient() -> None:
    output = _drawn(1, 4, seed=0)
    nodes, weights = np.polynomial.hermite.hermgauss(8)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for x, p in zip(nodes, weights / np.pi**0.5, strict=True):
        for y, q in zip(nodes, weights / np.pi**0.5, strict=True):
            noise = torch.tensor([[x, y]]) * 2**0.5 * (output[:, 2:] / 2).exp()
            target = output[:, :2] + noise
            expected += p * q * outer_of_gradient(lambda out, t=target: GaussianNLL(reduction="none")(out, t), output)
    assert_is(_rule(GaussianNLL()).information(output, target), expected)


def test_wrong_shapes_and_reductions_are_refused() -> None:
    rule = _rule(GaussianNLL())
    wrong = [((5, 2), (5,)), ((5, 4), (5, 4)), ((5, 4), (4, 2)), ((5, 3), (5, 1)), ((2,), (1,)), ((5, 4, 3), (5, 2, 1))]
    for output, target in wrong:
        for use in (GaussianNLL(), rule.contributions, rule.mass, rule.curvature, rule.information):
            with pytest.raises(DataError, match="twice the target's size"):
                use(torch.ones(output), torch.ones(target))
    with pytest.raises(StructureError, match="'average'"):
        GaussianNLL(reduction="average")


def test_repr_shows_the_options() -> None:
    assert repr(GaussianNLL(full=True, reduction="sum")) == "GaussianNLL(full=True, reduction='sum')"
