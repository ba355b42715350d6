"""The panel of checked derivatives."""

from __future__ import annotations

import torch
from torch import nn

from hesse.report.case import Settings, make_case
from hesse.report.panels import PANELS

from ..small import classifier, images

PANEL = PANELS["check"]


class Tilted(torch.autograd.Function):
    """The identity, whose backward is 1 % too large."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return 1.01 * g


def test_a_right_model() -> None:
    case = make_case(classifier(), nn.CrossEntropyLoss(), images(50), Settings())
    numbers = PANEL.measure(case)
    assert numbers["ok"]
    assert (numbers["parameters"], numbers["confirmed"], numbers["wrong"]) == (4, 4, 0)
    assert numbers["worst_error"] < 1e-7
    assert [row["shape"] for row in numbers["rows"]] == [[4, 1, 3, 3], [4], [3, 48], [3]]
    assert numbers["notes"] == ["Checked on 16 of the 50 samples, spread evenly over the batch."]
    view = PANEL.show(case, numbers)
    assert view.status == "good"
    assert view.headline == "All 4 parameter tensors confirmed against float64 differences."
    assert len(view.drawings) == 2


def test_a_wrong_model() -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.scale = classifier(), nn.Parameter(torch.tensor(0.5))

        def forward(self, x):
            return Tilted.apply(self.net(x)) * self.scale

    case = make_case(Wrong(), nn.CrossEntropyLoss(), images(), Settings())
    numbers = PANEL.measure(case)
    verdicts = {row["name"]: row["verdict"] for row in numbers["rows"]}
    assert verdicts.pop("scale") == "ok"
    assert set(verdicts.values()) == {"wrong"}
    view = PANEL.show(case, numbers)
    assert view.status == "bad"
    assert view.headline.startswith("4 of 5 parameter tensors have a wrong derivative: net.0.weight, net.0.bias")
    assert numbers["curve"]["name"] in verdicts
