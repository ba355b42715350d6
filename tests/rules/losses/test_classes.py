"""Cross entropy and negative log-likelihood of labels, soft labels and positions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.core.errors import DataError, SymmetryError
from hesse.rules.losses import Softmax, known_loss
from tests.rules.losses.oracles import TIGHT, assert_is, assert_samples_average_to, hessian, outer_of_gradient

CLASSES = 4
SHAPES = [(3,), (3, 2), (2, 2, 3)]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _logits(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape[0], CLASSES, *shape[1:], generator=_generator(seed), dtype=torch.float64)


def _labels(shape: tuple[int, ...], seed: int = 1) -> Tensor:
    return torch.randint(0, CLASSES, shape, generator=_generator(seed))


def _weight() -> Tensor:
    return torch.rand(CLASSES, generator=_generator(2), dtype=torch.float64) + 0.2


def _rule(loss: Any) -> Any:
    rule = known_loss(loss)
    assert rule is not None
    return rule


def _enumerated(function: Any, output: Tensor, log_probabilities: Tensor, weights: Tensor) -> Tensor:
    """Over positions and labels: probability times the outer product of the label's gradient, times a weight ``[n, ...]``."""
    expected = torch.zeros(output.numel(), output.numel(), dtype=torch.float64)
    positions = torch.zeros_like(output[:, 0], dtype=torch.long)
    for place in torch.ones_like(positions).nonzero().tolist():
        for label in range(CLASSES):
            labels = torch.full_like(positions, -100)
            labels[tuple(place)] = label
            probability = float(log_probabilities[place[0], label, *place[1:]].exp())
            gradient = outer_of_gradient(lambda out, labels=labels: function(out, labels, reduction="sum"), output)
            expected += float(weights[tuple(place)]) * probability * gradient
    return expected


OPTIONS = [
    {"weight": weight, "label_smoothing": smoothing, "ignore_index": ignored}
    for weight in (None, _weight())
    for smoothing in (0.0, 0.2, 1.0)
    for ignored in (-100, 1)
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", OPTIONS)
def test_cross_entropy_of_labels(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    output, target = _logits(shape), _labels(shape)
    target.view(-1)[0] = options["ignore_index"]
    rule = _rule(nn.CrossEntropyLoss(**options))
    form = rule.curvature(output, target)
    assert isinstance(form, Softmax) and not rule.linear
    assert_is(form, hessian(lambda out: F.cross_entropy(out, target, **options, reduction="none"), output))
    weights = F.cross_entropy(torch.zeros_like(output), target, **options, reduction="none") / math.log(CLASSES)
    expected = _enumerated(F.cross_entropy, output, output.log_softmax(1), weights)
    assert_is(rule.information(output, target), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weight", [None, _weight()], ids=["", "weight"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_of_soft_labels(shape: tuple[int, ...], weight: Tensor | None, smoothing: float) -> None:
    output = _logits(shape)
    for target in (_logits(shape, 5).softmax(1), _logits(shape, 5).abs(), _logits(shape, 6)):
        options = {"weight": weight, "label_smoothing": smoothing}
        rule = _rule(nn.CrossEntropyLoss(**options))
        form = rule.curvature(output, target)
        assert_is(form, hessian(lambda out, t=target, o=options: F.cross_entropy(out, t, **o, reduction="none"), output))
        weights = F.cross_entropy(torch.zeros_like(output), target, **options, reduction="none") / math.log(CLASSES)
        assert_is(rule.information(output, target), _enumerated(F.cross_entropy, output, output.log_softmax(1), weights))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weight", [None, _weight()], ids=["", "weight"])
@pytest.mark.parametrize("ignored", [-100, 1])
def test_nll(shape: tuple[int, ...], weight: Tensor | None, ignored: int) -> None:
    output, target = _logits(shape).log_softmax(1), _labels(shape)
    target.view(-1)[0] = ignored
    rule = _rule(nn.NLLLoss(weight=weight, ignore_index=ignored))
    assert rule.linear
    assert_is(rule.curvature(output, target), torch.zeros(output.numel(), output.numel(), dtype=torch.float64))
    weights = F.nll_loss(-torch.ones_like(output), target, weight=weight, ignore_index=ignored, reduction="none")
    assert_is(rule.information(output, target), _enumerated(F.nll_loss, output, output, weights))


def test_drawn_labels_give_the_information_of_many_equal_samples() -> None:
    many, output = 40_000, _logits((1, 2))
    target, weight = torch.tensor([[2, 1]]), _weight()
    form = _rule(nn.CrossEntropyLoss(weight=weight)).information(output.expand(many, -1, -1), target.expand(many, -1))
    expected = hessian(lambda out: F.cross_entropy(out, target, weight, reduction="none"), output)
    assert_samples_average_to(form, expected, 3)
    nll = _rule(nn.NLLLoss()).information(output.log_softmax(1).expand(many, -1, -1), target.expand(many, -1))
    assert_samples_average_to(nll, torch.diag(output.softmax(1).flatten()), 4)


def test_impossible_classes_stay_impossible() -> None:
    output = _logits((3,))
    output[:, 2] = -math.inf
    form = _rule(nn.CrossEntropyLoss()).curvature(output, torch.tensor([0, 1, 3]))
    rest = hessian(lambda out: F.cross_entropy(out, torch.tensor([0, 1, 2]), reduction="none"), output[:, [0, 1, 3]])
    found = form.mv(torch.eye(12, dtype=torch.float64).reshape(12, 3, 4)).reshape(12, 3, 4)
    assert not bool(torch.isnan(found).any()) and not bool(found[:, :, 2].any())
    torch.testing.assert_close(found.reshape(3, 4, 3, 4)[:, [0, 1, 3]][..., [0, 1, 3]].reshape(9, 9), rest, **TIGHT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_logits_are_computed_with_in_float32(dtype: torch.dtype) -> None:
    output, target = _logits((3, 2)).to(dtype), _labels((3, 2))
    v = _logits((3, 2), 7).to(dtype)
    rule = _rule(nn.CrossEntropyLoss(weight=_weight().to(dtype), label_smoothing=0.1))
    exact = _rule(nn.CrossEntropyLoss(weight=_weight().to(dtype).double(), label_smoothing=0.1))
    found, expected = rule.curvature(output, target), exact.curvature(output.double(), target)
    assert found.mv(v).dtype == found.diagonal().dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found.mv(v).double(), expected.mv(v.double()), rtol=eps, atol=1e-6)
    torch.testing.assert_close(found.diagonal().double(), expected.diagonal(), rtol=eps, atol=1e-6)


def test_negative_soft_labels_and_weights_have_no_roots() -> None:
    output, soft = _logits((2,)), _logits((2,), 5).softmax(1)
    soft[1] -= 0.6
    with pytest.raises(SymmetryError, match="1 of 2 samples: class weights or soft targets below 0"):
        _rule(nn.CrossEntropyLoss()).curvature(output, soft).root(0)
    weight = torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    with pytest.raises(SymmetryError, match="class weights below 0"):
        _rule(nn.NLLLoss(weight=weight)).information(output, torch.tensor([0, 1])).root(0)


def test_nothing_of_the_graph_is_kept() -> None:
    output, weight = _logits((3,)).requires_grad_(), _weight().requires_grad_()
    for loss in (nn.CrossEntropyLoss(weight=weight), nn.NLLLoss(weight=weight)):
        rule, target = _rule(loss), torch.tensor([0, 1, 3])
        for form in (rule.curvature(output, target), rule.information(output, target)):
            assert not form.diagonal().requires_grad and not form.mv(_logits((3,))).requires_grad
    assert output.grad is None


def test_targets_of_another_shape_are_refused() -> None:
    wrong = [((4,), ()), ((3, 4), (1,)), ((3, 4, 2), (3,)), ((3, 4, 2), (3, 1)), ((3, 4), (3, 1))]
    for output, target in wrong:
        for use in (_rule(nn.CrossEntropyLoss()).curvature, _rule(nn.NLLLoss()).information):
            with pytest.raises(DataError, match="labels"):
                use(torch.ones(output), torch.zeros(target, dtype=torch.long))
    with pytest.raises(DataError, match="labels"):
        _rule(nn.CrossEntropyLoss()).curvature(torch.ones(3, 4), torch.ones(3))
