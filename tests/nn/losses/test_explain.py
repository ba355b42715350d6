"""Why a gradient is zero: the reason and the line."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.core.errors import DetachedError
from hesse.nn.losses import ZeroGradient, explain_zero_gradient, interval

X = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
W = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


def membership(w: Tensor) -> Tensor:
    y = X @ w
    return torch.where((y > -1) & (y < 1), 1.0, -1.0).sum()


def rounded(w: Tensor) -> Tensor:
    y = X @ w
    return (y.round() - 2).square().sum()  # the line that is named


def saturated(w: Tensor) -> Tensor:
    return (X @ w - 100).relu().sum()


def test_a_membership_list_is_piecewise_constant() -> None:
    found = explain_zero_gradient(membership, W)
    assert found.is_zero
    assert "`lt`" in found.reason
    assert "piecewise constant" in found.reason
    assert "test_explain.py" in found.reason
    assert "hesse.nn.losses.interval" in str(found)
    assert not explain_zero_gradient(lambda w: interval(X @ w, -1, 1), W).is_zero


def test_rounding_is_named_with_its_line() -> None:
    found = explain_zero_gradient(rounded, W)
    assert found.is_zero
    assert "`round`" in found.reason
    assert "(y.round() - 2).square().sum()  # the line that is named" in found.reason
    assert "is piecewise constant" in found.reason


def test_saturation_is_named() -> None:
    found = explain_zero_gradient(saturated, W)
    assert found.is_zero
    assert "`relu`" in found.reason
    assert "at these values" in found.reason


def test_every_branch_that_dies_is_named() -> None:
    def loss(params: dict[str, Tensor], power: int) -> Tensor:
        return params["a"].sign().sum() + (params["b"].floor() ** power).sum()

    found = explain_zero_gradient(loss, {"a": W, "b": W}, power=2)
    assert "`sign`" in found.reason
    assert "`floor`" in found.reason
    assert "relu" not in found.reason
    assert found.zero_leaves == ("a", "b")


def test_a_loss_that_does_not_use_its_parameters() -> None:
    found = explain_zero_gradient(lambda w: X.sum(), W)
    assert found.is_zero
    assert found.reason == "the loss does not use the parameters"
    assert "compute the loss from the parameters" in str(found)


def test_gradients_that_are_not_zero() -> None:
    found = explain_zero_gradient(lambda p, x: ((x @ p["w"]).sum() + p["b"].sign()).square(), {"w": W, "b": 2.0}, X)
    assert found == ZeroGradient(False, "", ("b",))
    assert str(found) == "The gradient is not zero, but for b."
    assert str(explain_zero_gradient(lambda w: w.sum(), W)) == "The gradient is not zero."
    assert pickle.loads(pickle.dumps(found)) == found


def test_a_zero_on_one_way_is_no_explanation() -> None:
    assert not explain_zero_gradient(lambda w: w.sign().sum() + w.sum(), W).is_zero


def test_a_cut_is_an_error() -> None:
    with pytest.raises(DetachedError):
        explain_zero_gradient(lambda w: torch.tensor((X @ w).sum().item()), W)


def test_nothing_is_left_behind() -> None:
    w = W.clone().requires_grad_()
    hooks: Any = w._backward_hooks
    explain_zero_gradient(rounded, w)
    assert w.grad is None
    assert not (w._backward_hooks or hooks)
