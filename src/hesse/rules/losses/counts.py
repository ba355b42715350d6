"""The Poisson negative log-likelihood of counts."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from hesse.rules.losses.known import loss_rules
from hesse.rules.losses.pointwise import Second, pointwise


def _curvature(output: Tensor, target: Tensor, options: dict[str, Any]) -> Tensor:
    """``exp(x)`` of ``exp(x) - t x``; ``t / (x + eps)^2`` of ``x - t log(x + eps)``."""
    return output.exp() if options.get("log_input", True) else target / (output + options.get("eps", 1e-8)).square()


def _information(output: Tensor, target: Tensor, options: dict[str, Any]) -> Tensor:
    """The expected curvature: the rate x, which is the mean of a count, in place of the count t."""
    return _curvature(output, output, options)


loss_rules.register(nn.PoissonNLLLoss, F.poisson_nll_loss)(
    pointwise(
        F.poisson_nll_loss,
        Second(_curvature, _information, negative="counts or rates below 0"),
        "log_input",
        "full",
        "eps",
    )
)
