"""The Poisson negative log-likelihood."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.core.errors import SymmetryError
from hesse.rules.losses import known_loss
from tests.rules.losses.oracles import assert_is, hessian

OPTIONS = [
    {"log_input": log_input, "full": full, "eps": eps}
    for log_input in (True, False)
    for full in (True, False)
    for eps in (1e-8, 0.3)
]


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
def test_curvature_and_information(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    rates = torch.rand(3, 2, 2, generator=generator, dtype=torch.float64) * 3 + 0.2
    output = rates.log() if options["log_input"] else rates
    target = torch.randint(0, 6, (3, 2, 2), generator=generator).double()
    rule = known_loss(nn.PoissonNLLLoss(**options))
    assert rule is not None and rule.curvature is not None and rule.information is not None and not rule.linear
    expected = hessian(lambda out: F.poisson_nll_loss(out, target, reduction="none", **options), output)
    assert_is(rule.curvature(output, target), expected)

    counts = torch.arange(80, dtype=torch.float64)
    probabilities = torch.distributions.Poisson(rates[..., None]).log_prob(counts).exp()
    leaf = output[..., None].expand(*output.shape, 80).clone().requires_grad_()
    loss = F.poisson_nll_loss(leaf, counts.expand_as(leaf), reduction="sum", **options)
    (gradient,) = torch.autograd.grad(loss, leaf)
    if options["eps"] == 0.3 and not options["log_input"]:
        gradient = _score(leaf.detach(), counts, 0.3)
    assert_is(rule.information(output, target), torch.diag((probabilities * gradient.square()).sum(-1).flatten()))


def _score(rates: Tensor, counts: Tensor, eps: float) -> Tensor:
    """With a large eps the loss is no likelihood: what is expected is the second derivative, ``t / (x + eps)^2``."""
    return counts.sqrt() / (rates + eps)


def test_negative_counts_have_no_roots() -> None:
    rule = known_loss(nn.PoissonNLLLoss(log_input=False))
    assert rule is not None and rule.curvature is not None
    with pytest.raises(SymmetryError, match="1 of 2 samples: counts or rates below 0"):
        rule.curvature(torch.ones(2, 1), torch.tensor([[-1.0], [2.0]])).root(0)
