"""The panel of layers against a plain loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hesse.report.case import Settings, make_case
from hesse.report.panels import PANELS

from ..small import classifier, images, sample_gradients

PANEL = PANELS["layers"]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradient_and_fisher_are_those_of_a_loop(reduction: str) -> None:
    model, (x, y) = classifier(torch.float64), images(14, torch.float64)
    loss = nn.CrossEntropyLoss(reduction=reduction)
    numbers = PANEL.measure(make_case(model, loss, (x, y), Settings()))
    mass = 14 if reduction == "mean" else 1
    rows = sample_gradients(model, nn.CrossEntropyLoss(), x, y)
    gradients = torch.autograd.grad(loss(model(x), y), list(model.parameters()))
    trace = sum((g**2).sum().item() for sample in rows for g in sample) / mass
    assert numbers["parameters"] == 40 + 147
    assert numbers["fisher_trace"] == pytest.approx(trace, rel=1e-10)
    for i, (row, (name, parameter)) in enumerate(zip(numbers["rows"], model.named_parameters(), strict=True)):
        fisher = sum(sample[i] ** 2 for sample in rows) / mass
        assert (row["name"], row["shape"]) == (name, list(parameter.shape))
        assert row["gradient_norm"] == pytest.approx(gradients[i].norm().item(), rel=1e-9)
        assert row["gradient_rms"] == pytest.approx(gradients[i].square().mean().sqrt().item(), rel=1e-9)
        assert row["fisher_mean"] == pytest.approx(fisher.mean().item(), rel=1e-9)
        assert row["fisher_max"] == pytest.approx(fisher.max().item(), rel=1e-9)
        assert row["fisher_share"] == pytest.approx(fisher.sum().item() / trace, rel=1e-9)


def test_parameters_without_gradient_are_named() -> None:
    params = {"used": torch.ones(3), "deep": [torch.ones(2)]}
    data = (torch.ones(5, 3), torch.zeros(5))
    case = make_case((lambda p, x: x @ p["used"], params), nn.MSELoss(), data, Settings())
    numbers = PANEL.measure(case)
    assert "No gradient at all reaches deep.0." in numbers["notes"]
    assert len(PANEL.show(case, numbers).drawings) == 2


def test_many_parameters_are_drawn_in_part() -> None:
    with torch.random.fork_rng():
        model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(25)))
    case = make_case(model, nn.MSELoss(), (torch.rand(4, 2), torch.rand(4, 2)), Settings())
    view = PANEL.show(case, PANEL.measure(case))
    assert "The 40 parameters with the largest share" in view.drawings[0].caption
    assert len(view.drawings[0].figure.axes[0].patches) == 40
