"""Losses that are a sum of one term an element; their mean divides by the number of elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.core.errors import DataError
from hesse.rules.losses.known import SampleLoss, is_legacy, loss_rules, mass_by_reduction


def _pointwise(function: Callable[..., Tensor], allowed: set[str]) -> Callable[[dict[str, Any]], SampleLoss | None]:
    """The rule of a loss whose options are passed on to `function` with ``reduction="none"``."""

    def rule(options: dict[str, Any]) -> SampleLoss | None:
        given = {name: value for name, value in options.items() if name in allowed}
        rest = {name: value for name, value in options.items() if name not in allowed and value is not None}
        reduction = rest.pop("reduction", "mean")
        if is_legacy(options) or rest or reduction not in ("mean", "sum", "none", "batchmean"):
            return None

        def contributions(output: Tensor, target: Tensor) -> Tensor:
            _refuse_broadcast(output, target)
            return function(output, target, reduction="none", **given)

        def mass(output: Tensor, target: Tensor) -> float:
            _refuse_broadcast(output, target)
            if reduction == "batchmean":
                return float(output.shape[0])
            return float(torch.broadcast_shapes(output.shape, target.shape).numel())

        mean = "mean" if reduction in ("mean", "batchmean") else reduction
        return SampleLoss(contributions, mass_by_reduction(mean, mass), mean != "mean")

    return rule


def _refuse_broadcast(output: Tensor, target: Tensor) -> None:
    if output.ndim != target.ndim or output.shape[:1] != target.shape[:1]:
        raise DataError(
            "A loss compares the output of every sample with the target of that sample.",
            f"an output of shape {tuple(output.shape)} and a target of shape {tuple(target.shape)}, which broadcasting mixes",
            "give both the same shape",
        )


loss_rules.register(nn.MSELoss, F.mse_loss)(_pointwise(F.mse_loss, set()))
loss_rules.register(nn.L1Loss, F.l1_loss)(_pointwise(F.l1_loss, set()))
loss_rules.register(nn.SmoothL1Loss, F.smooth_l1_loss)(_pointwise(F.smooth_l1_loss, {"beta"}))
loss_rules.register(nn.HuberLoss, F.huber_loss)(_pointwise(F.huber_loss, {"delta"}))
loss_rules.register(nn.BCELoss, F.binary_cross_entropy)(_pointwise(F.binary_cross_entropy, {"weight"}))
loss_rules.register(nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits)(
    _pointwise(F.binary_cross_entropy_with_logits, {"weight", "pos_weight"})
)
loss_rules.register(nn.PoissonNLLLoss, F.poisson_nll_loss)(_pointwise(F.poisson_nll_loss, {"log_input", "full", "eps"}))
loss_rules.register(nn.KLDivLoss, F.kl_div)(_pointwise(F.kl_div, {"log_target"}))
