"""Every registered loss, any options: contributions and normalizer give back PyTorch's own loss and gradient."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.core.errors import DataError
from hesse.rules.losses import GaussianNLL, known_loss, loss_rules
from tests.parameters.losses import KNOWN, draw_loss
from tests.rules.losses.oracles import assert_is, hessian

CASES = 400


def test_the_sweep_draws_every_registered_loss() -> None:
    assert {key for key in loss_rules if isinstance(key, type)} == {*KNOWN, GaussianNLL}


def _wrong(seed: int) -> str:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    drawn = draw_loss(rng, generator)
    rule = known_loss(drawn.loss)
    if rule is None:
        return "" if not isinstance(drawn.loss, nn.Module) else f"{drawn.label}: no rule"
    shape = torch.Size((rng.choice([1, 2, 5]), 3, *[4, 2][: rng.choice([0, 0, 1, 2])]))
    raw = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    output, target = drawn.final(raw), drawn.targets(shape)
    terms, mass = rule.contributions(output, target), rule.mass(output, target)
    value = drawn.loss(output, target)
    by_sample = [float(drawn.by_sample(output[i : i + 1], target[i : i + 1])) for i in range(len(output))]
    found = [float(part.sum()) for part in terms]
    if found != pytest.approx(by_sample, rel=1e-12, abs=1e-12):
        return f"seed {seed}, {drawn.label}: samples give {found} instead of {by_sample}"
    if mass == 0:
        return "" if bool(torch.isnan(value)) and not any(found) else f"seed {seed}, {drawn.label}: mass 0"
    if float(terms.sum()) / mass != pytest.approx(float(value.sum()), rel=1e-12):
        return f"seed {seed}, {drawn.label}: {float(terms.sum())} / {mass} is not {float(value.sum())}"
    if rule.additive != (getattr(drawn.loss, "reduction", "mean") in ("sum", "none")):
        return f"seed {seed}, {drawn.label}: additive is {rule.additive}"
    return ""


@pytest.mark.filterwarnings("ignore")
def test_contributions_and_mass_give_the_loss_back(sweep: Callable[[Sequence[int], int], list[int]]) -> None:
    wrong = [message for seed in sweep(range(CASES), 120) if (message := _wrong(seed))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.filterwarnings("ignore")
def test_curvature_is_the_hessian_of_the_contributions(sweep: Callable[[Sequence[int], int], list[int]]) -> None:
    for seed in sweep(range(CASES), 60):
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        drawn = draw_loss(rng, generator)
        rule = known_loss(drawn.loss)
        if rule is None:
            continue
        shape = torch.Size((rng.choice([1, 2]), 3, *[2, 2][: rng.choice([0, 0, 1, 2])]))
        output = drawn.final(torch.randn(shape, generator=generator, dtype=torch.float64))
        target = drawn.targets(shape)
        assert rule.curvature is not None, drawn.label
        expected = hessian(lambda out, drawn=drawn, target=target: drawn.by_sample(out, target), output)
        print(f"seed {seed}, {drawn.label}")
        assert rule.linear <= (not bool(expected.any()))
        assert_is(rule.curvature(output, target), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_functions_and_partials_have_the_rule_of_their_module(reduction: str) -> None:
    output, target = torch.randn(4, 3).double(), torch.tensor([0, 2, 1, 0])
    options: dict[str, Any] = {"ignore_index": 2, "label_smoothing": 0.1, "reduction": reduction}
    rules = [known_loss(nn.CrossEntropyLoss(**options)), known_loss(functools.partial(F.cross_entropy, **options))]
    assert all(rule is not None for rule in rules)
    first, second = [(rule.contributions(output, target), rule.mass(output, target)) for rule in rules if rule]
    assert torch.equal(first[0], second[0]) and first[1] == second[1] == (3.0 if reduction == "mean" else 1.0)
    plain = known_loss(F.cross_entropy)
    assert plain is not None and plain.mass(output, target) == 4.0 and not plain.additive


class Doubled(nn.MSELoss):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return 2 * super().forward(input, target)


@pytest.mark.filterwarnings("ignore:size_average")
def test_a_loss_that_only_looks_known_has_no_rule() -> None:
    hooked = nn.MSELoss()
    hooked.register_forward_hook(lambda module, args, result: 3 * result)
    legacy = nn.MSELoss(size_average=False)
    for loss in (Doubled(), hooked, lambda o, t: F.mse_loss(o, t), functools.partial(F.mse_loss, torch.zeros(2)), object()):
        assert known_loss(loss) is None
    assert legacy.reduction == "sum" and known_loss(legacy) is not None  # PyTorch translates it
    assert known_loss(functools.partial(F.mse_loss, size_average=False)) is None


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_targets_that_would_be_broadcast_over_samples_are_refused() -> None:
    for cls in (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.PoissonNLLLoss):
        rule = known_loss(cls())
        assert rule is not None
        for output, target in (((5, 1), (5,)), ((5,), (5, 1)), ((5, 5), (5,)), ((5, 2), (1, 2))):
            with pytest.raises(DataError, match="broadcasting"):
                rule.contributions(torch.ones(output), torch.ones(target))
            with pytest.raises(DataError, match="broadcasting"):
                rule.mass(torch.ones(output), torch.ones(target))
        assert rule.contributions(torch.ones(5, 2), torch.ones(5, 1)).shape == (5, 2)
