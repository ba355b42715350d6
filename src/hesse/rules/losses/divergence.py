"""The Kullback-Leibler divergence of log-probabilities from given probabilities."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from hesse.rules.losses.known import loss_rules
from hesse.rules.losses.pointwise import Second, pointwise, zeros


def _probabilities(output: Tensor, target: Tensor, options: dict[str, Any]) -> Tensor:
    """A label drawn from ``exp(z)`` has the gradient ``-e_y``."""
    return output.exp()


loss_rules.register(nn.KLDivLoss, F.kl_div)(pointwise(F.kl_div, Second(zeros, _probabilities, linear=True), "log_target"))
