"""Cross entropy and negative log-likelihood of class labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.core.errors import DataError
from hesse.rules.losses.curvature import OutputCurvature, Pointwise, Softmax, computing
from hesse.rules.losses.known import Mass, SampleLoss, Trouble, is_legacy, loss_rules, mass_by_reduction


def _labels_weights(target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """The class weight of every label, like the target; 0 where it is ignored."""
    kept = target != ignore_index
    return kept if weight is None else weight[target.where(kept, torch.zeros_like(target))] * kept


def _soft_scale(output: Tensor, target: Tensor, weight: Tensor | None, smoothing: float) -> Tensor:
    """``[n, 1, ...]``: the sum over classes of ``w_c ((1 - smoothing) t_c + smoothing / C)``."""
    columns = output.new_ones(output.shape[1]) if weight is None else weight.to(output)
    columns = columns.reshape(-1, *[1] * (output.ndim - 2))
    return (1 - smoothing) * (target.to(output) * columns).sum(1, keepdim=True) + smoothing * columns.mean()


@loss_rules.register(nn.CrossEntropyLoss, F.cross_entropy)
def cross_entropy(options: dict[str, Any]) -> SampleLoss | None:
    """``cross_entropy(output [n, C, ...], target)``: labels ``[n, ...]`` or probabilities ``[n, C, ...]``.

    The mean divides by the sum of the class weights of the targets that are not ignored; for probabilities by the number of
    positions. A contribution is ``sum_c a_c (-log p_c)``, so that its curvature is ``sum(a) (diag p - p p^T)``, which is the
    information too.
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

    def mass(output: Tensor, target: Tensor) -> Mass:
        if target.dtype.is_floating_point:
            return output.numel() / output.shape[1]
        return _labels_weights(target, weight, ignore_index).sum(dtype=torch.float64).detach()

    def curvature(output: Tensor, target: Tensor) -> OutputCurvature:
        _require_positions(output, target)
        probabilities = output.detach().softmax(1, dtype=computing(output.dtype))
        if target.dtype.is_floating_point:
            scale = _soft_scale(probabilities, target, weight, smoothing)
        else:
            mean = 1.0 if weight is None else weight.to(probabilities).mean()
            kept = (target != ignore_index).to(probabilities)
            hard = _labels_weights(target, weight, ignore_index).to(probabilities)
            scale = ((1 - smoothing) * hard + smoothing * mean * kept).unsqueeze(1)
        return Softmax(probabilities, scale, dtype=output.dtype, negative="class weights or soft targets below 0")

    return SampleLoss(
        contributions,
        mass_by_reduction(reduction, mass),
        reduction != "mean",
        curvature,
        curvature,
        trouble=lambda output, target: _unknown_label(output, target, ignore_index),
    )


@loss_rules.register(nn.NLLLoss, F.nll_loss)
def nll(options: dict[str, Any]) -> SampleLoss | None:
    """``nll_loss(log_probabilities [n, C, ...], labels [n, ...])``; the mean divides as cross entropy's does.

    It is linear in the log-probabilities z; a label drawn from ``exp(z)`` has the gradient ``-e_y``, so that the information is
    ``diag(exp(z))`` times the weight of the given label.
    """
    if is_legacy(options) or set(options) - {"weight", "ignore_index", "reduction", "size_average", "reduce"}:
        return None
    weight, reduction = options.get("weight"), options.get("reduction", "mean")
    ignore_index = options.get("ignore_index", -100)

    def contributions(output: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(output, target, weight=weight, ignore_index=ignore_index, reduction="none")

    def mass(output: Tensor, target: Tensor) -> Mass:
        return _labels_weights(target, weight, ignore_index).sum(dtype=torch.float64).detach()

    def curvature(output: Tensor, target: Tensor) -> OutputCurvature:
        return Pointwise(torch.zeros_like(output))

    def information(output: Tensor, target: Tensor) -> OutputCurvature:
        _require_positions(output, target)
        probabilities = output.detach().to(computing(output.dtype)).exp()
        scale = _labels_weights(target, weight, ignore_index).to(probabilities).unsqueeze(1)
        return Pointwise(probabilities.mul_(scale), dtype=output.dtype, negative="class weights below 0")

    return SampleLoss(
        contributions,
        mass_by_reduction(reduction, mass),
        reduction != "mean",
        curvature,
        information,
        linear=True,
        trouble=lambda output, target: _unknown_label(output, target, ignore_index),
    )


def _unknown_label(output: Tensor, target: Tensor, ignore_index: int) -> Trouble | None:
    """The first label that is none of the classes of the output."""
    if target.dtype.is_floating_point or target.dtype.is_complex or target.is_meta or not output.ndim:
        return None
    classes = output.shape[min(output.ndim - 1, 1)]
    places = torch.nonzero(((target < 0) | (target >= classes)) & (target != ignore_index))
    if not len(places):
        return None
    place = tuple(places[0].tolist())
    others = f", and {len(places) - 1} more" if len(places) > 1 else ""
    return (
        f"target[{', '.join(map(str, place))}] = {int(target[place])} (of a target of shape {tuple(target.shape)}{others}), "
        f"where the output has {classes} classes",
        f"give labels 0 to {classes - 1}, or {ignore_index} (ignore_index) for what does not count",
    )


def _require_positions(output: Tensor, target: Tensor) -> None:
    positions = output.shape[:1] + output.shape[2:]
    soft = target.dtype.is_floating_point
    if output.ndim < 2 or target.shape != (output.shape if soft else positions):
        raise DataError(
            "Class labels are compared with outputs of shape [n, C, ...].",
            f"an output of shape {tuple(output.shape)} and a {target.dtype} target of shape {tuple(target.shape)}",
            "give labels [n, ...] as integers, or probabilities of the output's shape",
        )
