"""The rule of losses that are a sum of one term an element; their mean divides by the number of elements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.core.errors import DataError
from hesse.rules.losses.curvature import Pointwise, computing
from hesse.rules.losses.known import CurvatureOf, LossRule, SampleLoss, Trouble, is_legacy, mass_by_reduction

Weights = Callable[[Tensor, Tensor, dict[str, Any]], Tensor]
"""``(output, target, options)`` to numbers that broadcast to the contributions."""


@dataclass(frozen=True)
class Second:
    """The second derivatives of a pointwise loss's terms by the output.

    Attributes:
        curvature: at the given targets.
        information: expected; None if the loss is no negative log-likelihood.
        linear: whether the terms are linear in the output, almost everywhere.
        negative: when a number is below 0, for error messages.
    """

    curvature: Weights
    information: Weights | None = None
    linear: bool = False
    negative: str = ""


def zeros(output: Tensor, target: Tensor, options: dict[str, Any]) -> Tensor:
    """The second derivative of terms that are linear in the output."""
    return torch.zeros_like(output)


def pointwise(function: Callable[..., Tensor], second: Second, *allowed: str) -> LossRule:
    """The rule of a loss whose options `allowed` are passed on to `function` with ``reduction="none"``."""

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
        return SampleLoss(
            contributions,
            mass_by_reduction(mean, mass),
            mean != "mean",
            _diagonal(second.curvature, given, second.negative),
            None if second.information is None else _diagonal(second.information, given, second.negative),
            second.linear,
            lambda output, target: _shapes(output, target) or _weight_of_others(output, target, given),
        )

    return rule


def _diagonal(weights: Weights, options: dict[str, Any], negative: str) -> CurvatureOf:
    def of(output: Tensor, target: Tensor) -> Pointwise:
        _refuse_broadcast(output, target)
        dtype = computing(output.dtype)
        found = weights(output.detach().to(dtype), target.detach().to(dtype), options)
        terms = torch.broadcast_shapes(output.shape, target.shape)
        return Pointwise(found.expand(terms).sum_to_size(output.shape), dtype=output.dtype, negative=negative)

    return of


def _shapes(output: Tensor, target: Tensor) -> Trouble | None:
    if output.shape == target.shape:
        return None
    return f"an output of shape {tuple(output.shape)} and a target of shape {tuple(target.shape)}", "give both the same shape"


def _weight_of_others(output: Tensor, target: Tensor, options: dict[str, Any]) -> Trouble | None:
    """A weight that has another number of samples than the output."""
    weight, shape = options.get("weight"), output.shape
    if not isinstance(weight, Tensor) or weight.ndim != len(shape) or weight.shape[0] in (1, shape[0]):
        return None
    return (
        f"a weight of shape {tuple(weight.shape)}, one for each of {weight.shape[0]} samples, with an output of shape "
        f"{tuple(shape)}: other samples, or a part of them",
        "use such a loss with its own batch as a whole (no slices of it: without memory=, or a larger one), or pass a function "
        "that finds the weights in the targets: lambda output, both: loss(output, both[0], weight=both[1], reduction='sum')",
    )


def _refuse_broadcast(output: Tensor, target: Tensor) -> None:
    if output.ndim != target.ndim or output.shape[:1] != target.shape[:1]:
        raise DataError(
            "A loss compares the output of every sample with the target of that sample.",
            f"an output of shape {tuple(output.shape)} and a target of shape {tuple(target.shape)}, which broadcasting mixes",
            "give both the same shape",
        )
