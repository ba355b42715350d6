"""The Gaussian negative log-likelihood with a learned variance, as a loss of one output and one target.

PyTorch's `nn.GaussianNLLLoss` takes mean and variance as two arguments, so that it has no place as ``loss(output, target)``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hesse.core.errors import DataError, StructureError
from hesse.rules.losses.curvature import OutputCurvature, Pointwise, computing
from hesse.rules.losses.known import SampleLoss, loss_rules, mass_by_reduction
from hesse.rules.losses.pairs import Pairs

_REDUCTIONS = ("mean", "sum", "none")


class GaussianNLL(nn.Module):
    """The negative log-likelihood of targets under Gaussians whose mean and log variance a model predicts.

    ``0.5 (log var + (y - mean)^2 / var)``; the first half of the output's axis 1 holds the means, the second half the
    logarithms of the variances, so that every output is allowed and none needs a floor.

    Args:
        full: whether to add the constant ``0.5 log(2 pi)``.
        reduction: "mean" (over the elements of the target), "sum" or "none" (of the target's shape).

    Raises:
        StructureError: another reduction.
    """

    def __init__(self, *, full: bool = False, reduction: str = "mean") -> None:
        super().__init__()
        if reduction not in _REDUCTIONS:
            raise StructureError(
                "GaussianNLL reduces its terms in one of three ways.",
                f"reduction={reduction!r}",
                f"choose one of {', '.join(_REDUCTIONS)}",
            )
        self.full, self.reduction = full, reduction

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of outputs ``[n, 2 d, ...]`` for targets ``[n, d, ...]``.

        Raises:
            DataError: the shapes are others.
        """
        terms = _terms(output, target, self.full)
        return terms if self.reduction == "none" else terms.mean() if self.reduction == "mean" else terms.sum()

    def extra_repr(self) -> str:
        """The options, as `repr` shows them."""
        return f"full={self.full}, reduction={self.reduction!r}"


def _halves(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    doubled = [size * (2 if axis == 1 else 1) for axis, size in enumerate(target.shape)]
    if output.ndim < 2 or list(output.shape) != doubled:
        raise DataError(
            "GaussianNLL compares outputs [n, 2 d, ...] (means, then log variances) with targets [n, d, ...].",
            f"an output of shape {tuple(output.shape)} and a target of shape {tuple(target.shape)}",
            "give the output twice the target's size along axis 1",
        )
    mean, log_variance = output.chunk(2, 1)
    return mean, log_variance


def _terms(output: Tensor, target: Tensor, full: bool) -> Tensor:
    mean, log_variance = _halves(output, target)
    return 0.5 * (log_variance + (target - mean).square() * (-log_variance).exp() + (math.log(2 * math.pi) if full else 0.0))


def _curvature(output: Tensor, target: Tensor) -> OutputCurvature:
    """With precision v and residual r: ``[[v, r v], [r v, r^2 v / 2]]``, of determinant ``-(r v)^2 / 2``."""
    mean, log_variance = _halves(output.detach().to(computing(output.dtype)), target)
    precision, residual = (-log_variance).exp(), target.detach().to(mean) - mean
    slope = residual * precision
    negative = "a Gaussian's mean and log variance together have an indefinite curvature wherever the mean misses the target"
    return Pairs(precision, slope, 0.5 * residual * slope, dtype=output.dtype, negative=negative)


def _information(output: Tensor, target: Tensor) -> OutputCurvature:
    """``diag(1 / var)`` for the means, 1/2 for the log variances."""
    _, log_variance = _halves(output.detach().to(computing(output.dtype)), target)
    precision = (-log_variance).exp()
    return Pointwise(torch.cat([precision, torch.full_like(precision, 0.5)], 1), dtype=output.dtype)


@loss_rules.register(GaussianNLL)
def gaussian_nll(options: dict[str, Any]) -> SampleLoss | None:
    """`GaussianNLL`; the mean divides by the number of elements of the target."""
    if set(options) != {"full", "reduction"}:
        return None
    full, reduction = options["full"], options["reduction"]

    def contributions(output: Tensor, target: Tensor) -> Tensor:
        return _terms(output, target, full)

    def mass(output: Tensor, target: Tensor) -> float:
        _halves(output, target)
        return float(target.numel())

    return SampleLoss(contributions, mass_by_reduction(reduction, mass), reduction != "mean", _curvature, _information)
