"""What PyTorch's losses refuse is named by type: the label that is no class, the weights of other samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hesse
from hesse.core.errors import DataError, MemoryBudgetError
from hesse.curvature.slicing import Slicing

QUESTIONS: dict[str, Callable[..., Any]] = {
    "rows": lambda *given: hesse.parameter_jacobian(*given).norms(),
    "rows of a data set": lambda model, loss, batch: hesse.parameter_jacobian(model, loss, [batch]).gram(),
    "hessian": hesse.loss_hessian,
    "fisher": hesse.fisher,
    "sampled fisher": lambda *given: hesse.fisher(*given, kind="sampled"),
    "empirical fisher": lambda *given: hesse.fisher(*given, kind="empirical"),
    "kfac": hesse.kfac,
    "ekfac": hesse.ekfac,
    "by inputs": hesse.input_hessian,
    "by outputs": lambda model, loss, batch: hesse.output_hessian(loss, model(batch[0]), batch[1]),
}
CLASSES = [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])), nn.NLLLoss(), F.cross_entropy]


def network(outputs: int, inputs: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, outputs))


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_label_that_is_no_class_is_named(name: str) -> None:
    for loss in CLASSES:
        for label in (3, -1):
            batch = torch.randn(6, 4), torch.tensor([0, 2, -100, 1, label, 0])
            with pytest.raises(DataError, match=rf"target\[4\] = {label} .*3 classes") as caught:
                QUESTIONS[name](network(3), loss, batch)
            assert "labels 0 to 2, or -100" in str(caught.value)


def test_its_position_is_named_too() -> None:
    target = torch.zeros(2, 3, 3, dtype=torch.long)
    target[1, 2, 0] = target[1, 2, 1] = 9
    model = nn.Conv2d(2, 4, 3, padding=1)
    with pytest.raises(DataError, match=r"target\[1, 2, 0\] = 9 \(of a target of shape \(2, 3, 3\), and 1 more\)"):
        hesse.ggn(model, nn.CrossEntropyLoss(ignore_index=7), (torch.randn(2, 2, 3, 3), target))


def test_labels_of_eight_bits_are_named_too() -> None:
    """PyTorch's own message for them may be no text."""
    target = torch.tensor([0, 2, 200, 1], dtype=torch.uint8)
    for ask in QUESTIONS.values():
        with pytest.raises(DataError, match=r"target\[2\] = 200 .*3 classes"):
            ask(network(3), nn.CrossEntropyLoss(), (torch.randn(4, 4), target))


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), nn.BCELoss(), nn.PoissonNLLLoss()])
def test_targets_of_another_shape_are_named(loss: nn.Module) -> None:
    model = nn.Sequential(network(3), nn.Sigmoid())
    for ask in (hesse.loss_hessian, hesse.ggn, QUESTIONS["rows"]):
        with pytest.raises(DataError, match=r"output of shape \(5, 3\) and a target of shape \(5,\)"):
            ask(model, loss, (torch.randn(5, 4), torch.rand(5)))


def test_targets_whose_values_tell_nothing_keep_the_message_of_torch() -> None:
    for target in (torch.zeros(2, dtype=torch.long, device="meta"), torch.rand(2, 3) + 0j):
        with pytest.raises(RuntimeError) as caught:
            hesse.ggn(network(3), nn.CrossEntropyLoss(), (torch.randn(2, 4), target))
        assert not isinstance(caught.value, NotImplementedError)  # of a question to the target that has no answer


def test_other_failures_of_a_loss_stay_what_they_are() -> None:
    with pytest.raises(IndexError, match="out of bounds"):  # a function of the user's own
        hesse.loss_hessian(network(3), lambda o, t: F.cross_entropy(o, t), (torch.randn(2, 4), torch.tensor([0, 3])))
    with pytest.raises(RuntimeError, match="dtype"):
        hesse.parameter_jacobian(network(3), nn.CrossEntropyLoss(), (torch.randn(2, 4), torch.zeros(2, dtype=torch.int16)))


@pytest.mark.parametrize("make", [nn.BCEWithLogitsLoss, nn.BCELoss])
@pytest.mark.parametrize("name", ["kfac", "ekfac", "rows", "empirical fisher", "hessian"])
def test_weights_of_the_samples_of_one_batch_are_for_no_other(name: str, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(1) if make is nn.BCEWithLogitsLoss else nn.Sequential(network(1), nn.Sigmoid())
    batch, loss = (torch.randn(8, 4), torch.rand(8, 1).round()), make(weight=torch.rand(8, 1))
    found = r"a weight of shape \(8, 1\), one for each of 8 samples, with an output of shape \(\d, 1\)"
    QUESTIONS[name](model, loss, batch)
    for other in (tuple(part[:5] for part in batch), tuple(part[3:4] for part in batch)):
        with pytest.raises(DataError, match=found):
            QUESTIONS[name](model, loss, other)
    if name == "rows":
        return
    monkeypatch.setattr(Slicing, "at_once", lambda self, batch: 3)  # as under a memory budget
    error, text = (DataError, found) if "kfac" in name else (MemoryBudgetError, "does not add up")
    with pytest.raises(error, match=text):
        QUESTIONS[name](model, loss, batch)
