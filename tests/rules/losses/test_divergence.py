"""The Kullback-Leibler divergence: linear in the log-probabilities, with the information of drawn labels."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hesse.rules.losses import known_loss
from tests.rules.losses.oracles import assert_is, hessian, outer_of_gradient


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("shape", [(4,), (4, 2)])
def test_curvature_and_information(log_target: bool, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    output, target = torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64).log_softmax(2)
    rule = known_loss(nn.KLDivLoss(reduction="batchmean", log_target=log_target))
    assert rule is not None and rule.curvature is not None and rule.information is not None and rule.linear
    given = target if log_target else target.exp()
    form = rule.curvature(output, given)
    assert_is(form, hessian(lambda z: F.kl_div(z, given, reduction="none", log_target=log_target), output))
    assert not bool(form.diagonal().any())

    expected = torch.zeros(output.numel(), output.numel(), dtype=torch.float64)
    positions = output[0, 0].numel()
    for i in range(3):
        for y in range(4):
            for t in range(positions):
                one = torch.zeros(3, 4, positions, dtype=torch.float64)
                one[i, y, t] = 1
                one = one.reshape(output.shape)
                expected += float((output.exp() * one).sum()) * outer_of_gradient(
                    lambda z, one=one: F.kl_div(z, one, reduction="none"), output
                )
    assert_is(rule.information(output, given), expected)
