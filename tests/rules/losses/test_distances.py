"""Squared, absolute, Huber and smooth absolute distances."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.rules.losses import SampleLoss, known_loss
from tests.rules.losses.oracles import assert_is, hessian, outer_of_gradient


def _rule(loss: Any) -> SampleLoss:
    rule = known_loss(loss)
    assert rule is not None and rule.curvature is not None
    return rule


def _drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LOSSES = [
    nn.MSELoss(), nn.L1Loss(), nn.HuberLoss(), nn.HuberLoss(delta=0.4), nn.SmoothL1Loss(), nn.SmoothL1Loss(beta=0.4),
    nn.SmoothL1Loss(beta=0.0),
]  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_curvature_is_the_hessian(loss: Any) -> None:
    summed = type(loss)(**{name: getattr(loss, name) for name in ("beta", "delta") if hasattr(loss, name)}, reduction="sum")
    for shapes in (((5,), (5,)), ((3, 4), (3, 4)), ((2, 3, 2), (2, 3, 2)), ((3, 1), (3, 4)), ((3, 4), (3, 1))):
        output, target = _drawn(*shapes[0], seed=0), _drawn(*shapes[1], seed=1)
        with pytest.warns(UserWarning, match="size") if shapes[0] != shapes[1] else nullcontext():
            expected = hessian(lambda out, target=target: summed(out, target), output)
        form = _rule(loss).curvature(output, target)
        assert form.shape == output.shape
        assert_is(form, expected)


@pytest.mark.parametrize("loss", [nn.HuberLoss(delta=0.5), nn.SmoothL1Loss(beta=0.5), nn.SmoothL1Loss(beta=0.0)])
def test_at_the_kinks_pytorch_decides(loss: Any) -> None:
    output, target = torch.tensor([[0.5, -0.5, 0.0, 0.25]], dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64)
    assert_is(_rule(loss).curvature(output, target), hessian(lambda out: loss(out, target) * 4, output))


def test_which_are_linear_and_which_are_distributions() -> None:
    linear = [_rule(loss).linear for loss in LOSSES]
    assert linear == [False, True, False, False, False, False, True]
    known = [_rule(loss).information is not None for loss in LOSSES]
    assert known == [True, True, False, False, False, False, True]


def test_information_of_squares_is_that_of_a_gaussian_of_variance_one_half() -> None:
    output = _drawn(1, 2, seed=0)
    nodes, weights = np.polynomial.hermite.hermgauss(6)  # for the density exp(-x^2) / sqrt(pi) itself
    expected = torch.zeros(2, 2, dtype=torch.float64)
    for x, p in zip(nodes, weights / np.pi**0.5, strict=True):
        for y, q in zip(nodes, weights / np.pi**0.5, strict=True):
            target = output + torch.tensor([[x, y]])
            expected += p * q * outer_of_gradient(lambda out, t=target: F.mse_loss(out, t, reduction="none"), output)
    assert_is(_rule(nn.MSELoss()).information(output, output), expected)


@pytest.mark.parametrize("loss", [nn.L1Loss(), nn.SmoothL1Loss(beta=0.0)], ids=repr)
def test_information_of_absolute_distances_is_that_of_a_laplace_distribution(loss: Any) -> None:
    output = _drawn(1, 1, seed=0)
    grid = torch.linspace(-40, 40, 200_001, dtype=torch.float64)
    density = torch.exp(-F.l1_loss(grid, output[0].expand_as(grid), reduction="none"))
    leaf = output[0].expand(len(grid)).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.l1_loss(leaf, grid, reduction="sum"), leaf)
    expected = (density * gradient.square()).sum() / density.sum()
    torch.testing.assert_close(_rule(loss).information(output, output).diagonal(), expected.reshape(1, 1), rtol=1e-3, atol=0)


def test_information_does_not_depend_on_the_target() -> None:
    output = _drawn(3, 2, seed=0)
    for loss in (nn.MSELoss(), nn.L1Loss()):
        first, second = (_rule(loss).information(output, _drawn(3, 2, seed=seed)).diagonal() for seed in (1, 2))
        assert torch.equal(first, second)
