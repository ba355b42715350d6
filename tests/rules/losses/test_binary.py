"""Binary cross entropy of probabilities and of logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.core.errors import DataError, SymmetryError
from hesse.rules.losses import known_loss
from tests.rules.losses.oracles import assert_is, hessian


def _uniform(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.8 + 0.1


def _rule(loss: Any) -> Any:
    rule = known_loss(loss)
    assert rule is not None
    return rule


WEIGHTS = [None, (3, 4, 2), (3, 1, 1), (4, 1), (2,), ()]


@pytest.mark.parametrize("shape", WEIGHTS)
@pytest.mark.parametrize("hard", [False, True])
def test_probabilities(shape: Any, hard: bool) -> None:
    output, target = _uniform(3, 4, 2, seed=0), _uniform(3, 4, 2, seed=1)
    target = target.round() if hard else target
    weight = None if shape is None else _uniform(*shape, seed=2)
    rule = _rule(nn.BCELoss(weight))
    expected = hessian(lambda p: F.binary_cross_entropy(p, target, weight, reduction="none"), output)
    assert_is(rule.curvature(output, target), expected)
    one, zero = (_gradient(F.binary_cross_entropy, output, label).square() for label in (1.0, 0.0))
    expected = (output * one + (1 - output) * zero) * (1.0 if weight is None else weight)
    assert_is(rule.information(output, target), torch.diag(expected.flatten()))


@pytest.mark.parametrize("shape", WEIGHTS)
@pytest.mark.parametrize("positive", WEIGHTS)
def test_logits(shape: Any, positive: Any) -> None:
    output, target = 4 * _uniform(3, 4, 2, seed=0) - 2, _uniform(3, 4, 2, seed=1)
    weight = None if shape is None else _uniform(*shape, seed=2)
    pos_weight = None if positive is None else 3 * _uniform(*positive, seed=3)
    rule = _rule(nn.BCEWithLogitsLoss(weight=weight, pos_weight=pos_weight))

    def loss(out: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(out, target, weight, reduction="none", pos_weight=pos_weight)

    assert_is(rule.curvature(output, target), hessian(loss, output))
    p = output.sigmoid()
    one, zero = (_gradient(F.binary_cross_entropy_with_logits, output, label).square() for label in (1.0, 0.0))
    share = target * (1.0 if pos_weight is None else pos_weight) + (1 - target)
    expected = (p * one + (1 - p) * zero) * share * (1.0 if weight is None else weight)
    assert_is(rule.information(output, target), torch.diag(expected.flatten()))


def _gradient(function: Any, output: Tensor, label: float) -> Tensor:
    leaf = output.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf, torch.full_like(leaf, label), reduction="sum"), leaf)
    return gradient


@pytest.mark.parametrize("p", [0.0, 1.0, 1e-30, 1e-50, 1e-13])
@pytest.mark.parametrize("t", [0.0, 1.0, 0.5])
def test_where_logs_are_cut_off_the_derivative_is_pytorchs(p: float, t: float) -> None:
    output, target = torch.tensor([[p]], dtype=torch.float64), torch.tensor([[t]], dtype=torch.float64)
    expected = hessian(lambda out: F.binary_cross_entropy(out, target, reduction="none"), output)
    rule = _rule(nn.BCELoss())
    torch.testing.assert_close(rule.curvature(output, target).diagonal(), expected, rtol=1e-9, atol=0)
    gradients = [float(_gradient(F.binary_cross_entropy, output, label)) for label in (1.0, 0.0)]
    found = float(rule.information(output, target).diagonal())
    assert found == pytest.approx(p * gradients[0] ** 2 + (1 - p) * gradients[1] ** 2, rel=1e-6)


def test_large_logits_keep_their_small_curvature() -> None:
    output = torch.tensor([[40.0, -40.0, 80.0]])
    found = _rule(nn.BCEWithLogitsLoss()).curvature(output, torch.ones(1, 3)).diagonal()
    expected = torch.tensor([[40.0, 40.0, 80.0]], dtype=torch.float64).neg().exp()
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


def test_targets_beyond_0_and_1_have_no_roots() -> None:
    output, target = torch.tensor([[0.9], [0.4]]), torch.tensor([[1.5], [0.4]])
    with pytest.raises(SymmetryError, match=r"1 of 2 samples: targets outside \[0, 1\]"):
        _rule(nn.BCELoss()).curvature(output, target).root(0)
    weighted = _rule(nn.BCEWithLogitsLoss(pos_weight=torch.tensor(-2.0)))
    assert not weighted.curvature(output, target).is_psd


def test_targets_of_another_shape_are_refused() -> None:
    for cls in (nn.BCELoss, nn.BCEWithLogitsLoss):
        for name in ("curvature", "information"):
            with pytest.raises(DataError, match="broadcasting"):
                getattr(_rule(cls()), name)(torch.ones(3, 1), torch.ones(3))
