"""Cross entropy and negative log-likelihood of class labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.rules.losses.known import SampleLoss, is_legacy, loss_rules, mass_by_reduction


def _labels_mass(target: Tensor, weight: Tensor | None, ignore_index: int) -> float:
    kept = target != ignore_index
    if weight is None:
        return float(kept.sum())
    return float((weight[target.where(kept, torch.zeros_like(target))] * kept).sum())


@loss_rules.register(nn.CrossEntropyLoss, F.cross_entropy)
def cross_entropy(options: dict[str, Any]) -> SampleLoss | None:
    """``cross_entropy(output [n, C, ...], target)``: labels ``[n, ...]`` or probabilities ``[n, C, ...]``.

    The mean divides by the sum of the class weights of the targets that are not ignored; for probabilities by the number of
    positions.
    """
    if is_legacy(options) or set(options) - {
        "weight",
        "ignore_index",
        "reduction",
        "label_smoothing",
        "size_average",
        "reduce",
    }:
        return None
    weight, reduction = options.get("weight"), options.get("reduction", "mean")
    ignore_index, smoothing = options.get("ignore_index", -100), options.get("label_smoothing", 0.0)

    def contributions(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            output, target, weight=weight, ignore_index=ignore_index, reduction="none", label_smoothing=smoothing
        )

    def mass(output: Tensor, target: Tensor) -> float:
        if target.dtype.is_floating_point:
            return output.numel() / output.shape[1]
        return _labels_mass(target, weight, ignore_index)

    return SampleLoss(contributions, mass_by_reduction(reduction, mass), reduction != "mean")


@loss_rules.register(nn.NLLLoss, F.nll_loss)
def nll(options: dict[str, Any]) -> SampleLoss | None:
    """``nll_loss(log_probabilities [n, C, ...], labels [n, ...])``; the mean divides as cross entropy's does."""
    if is_legacy(options) or set(options) - {"weight", "ignore_index", "reduction", "size_average", "reduce"}:
        return None
    weight, reduction = options.get("weight"), options.get("reduction", "mean")
    ignore_index = options.get("ignore_index", -100)

    def contributions(output: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(output, target, weight=weight, ignore_index=ignore_index, reduction="none")

    def mass(output: Tensor, target: Tensor) -> float:
        return _labels_mass(target, weight, ignore_index)

    return SampleLoss(contributions, mass_by_reduction(reduction, mass), reduction != "mean")
