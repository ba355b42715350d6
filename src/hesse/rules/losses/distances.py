"""Losses of the distance ``d = output - target``: squared, absolute, and those that are squared inside and absolute outside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.rules.losses.known import SampleLoss, loss_rules
from hesse.rules.losses.pointwise import Second, pointwise, zeros


def _twos(output: Tensor, target: Tensor, options: dict[str, Any]) -> Tensor:
    """``d^2`` is the negative log-likelihood of a Gaussian of variance 1/2."""
    return torch.full_like(output, 2)


def _ones(output: Tensor, target: Tensor, options: dict[str, Any]) -> Tensor:
    """``|d|`` is the negative log-likelihood of a Laplace distribution of scale 1, whose gradient is a sign."""
    return torch.ones_like(output)


def _inside_delta(output: Tensor, target: Tensor, options: dict[str, Any]) -> Tensor:
    return ((output - target).abs() < options.get("delta", 1.0)).to(output)


def _inside_beta(output: Tensor, target: Tensor, options: dict[str, Any]) -> Tensor:
    beta = options.get("beta", 1.0)
    return ((output - target).abs() < beta).to(output) / beta


_absolute = Second(zeros, _ones, linear=True)
_smooth_l1 = pointwise(F.smooth_l1_loss, Second(_inside_beta), "beta")
_smooth_l1_of_beta_0 = pointwise(F.smooth_l1_loss, _absolute, "beta")


@loss_rules.register(nn.SmoothL1Loss, F.smooth_l1_loss)
def smooth_l1(options: dict[str, Any]) -> SampleLoss | None:
    """``smooth_l1_loss``: ``d^2 / (2 beta)`` for ``|d| < beta``, else ``|d| - beta / 2``; with ``beta=0`` the L1 loss."""
    return (_smooth_l1_of_beta_0 if options.get("beta") == 0 else _smooth_l1)(options)


loss_rules.register(nn.MSELoss, F.mse_loss)(pointwise(F.mse_loss, Second(_twos, _twos)))
loss_rules.register(nn.L1Loss, F.l1_loss)(pointwise(F.l1_loss, _absolute))
loss_rules.register(nn.HuberLoss, F.huber_loss)(pointwise(F.huber_loss, Second(_inside_delta), "delta"))
