"""Binary cross entropy, of probabilities and of logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from hesse.rules.losses.known import loss_rules
from hesse.rules.losses.pointwise import Second, pointwise

_FLOOR = 1e-12  # PyTorch's own, below which it keeps 1 / p and 1 / (1 - p) from growing


def _weighted(weights: Tensor, options: dict[str, Any]) -> Tensor:
    weight = options.get("weight")
    return weights if weight is None else weights * weight.detach()


def _of_probabilities(p: Tensor, target: Tensor, options: dict[str, Any]) -> Tensor:
    """``t / p^2 + (1 - t) / (1 - p)^2``; within 1e-12 of 0 and 1, where logs are cut off at -100, as PyTorch differentiates."""
    square = target * (1 - p).square() + (1 - target) * p.square()
    return _weighted(square / ((p + _FLOOR) * (1 - p + _FLOOR)).square(), options)


def _expected(p: Tensor, target: Tensor, options: dict[str, Any]) -> Tensor:
    """``1 / (p (1 - p))``, from the gradient ``(p - t) / max(p (1 - p), 1e-12)`` that PyTorch gives."""
    variance = p * (1 - p)
    return _weighted(variance / variance.clamp(min=_FLOOR).square(), options)


def _of_logits(x: Tensor, target: Tensor, options: dict[str, Any]) -> Tensor:
    """``(pos_weight t + 1 - t) s (1 - s)`` with s the sigmoid of x, both at the target and expected."""
    positive = options.get("pos_weight")
    share = 1.0 if positive is None else 1 + (positive.detach() - 1) * target
    return _weighted(x.sigmoid() * (-x).sigmoid() * share, options)


_NEGATIVE = "targets outside [0, 1], or weights below 0"

loss_rules.register(nn.BCELoss, F.binary_cross_entropy)(
    pointwise(F.binary_cross_entropy, Second(_of_probabilities, _expected, negative=_NEGATIVE), "weight")
)
loss_rules.register(nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits)(
    pointwise(F.binary_cross_entropy_with_logits, Second(_of_logits, _of_logits, negative=_NEGATIVE), "weight", "pos_weight")
)
