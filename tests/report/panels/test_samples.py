"""The panel of per-sample gradients against a plain loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hesse.report.case import Settings, make_case
from hesse.report.panels import PANELS

from ..small import classifier, flat, images, sample_gradients

PANEL = PANELS["samples"]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_norms_are_those_of_a_loop(reduction: str) -> None:
    model, (x, y) = classifier(torch.float64), images(14, torch.float64)
    numbers = PANEL.measure(make_case(model, nn.CrossEntropyLoss(reduction=reduction), (x, y), Settings()))
    expected = torch.stack([flat(g).norm() for g in sample_gradients(model, nn.CrossEntropyLoss(), x, y)])
    assert numbers["norms"] == pytest.approx(expected.tolist(), rel=1e-10)
    order = sorted(range(14), key=lambda i: -expected[i])
    assert [row["index"] for row in numbers["largest"]] == order[:12]
    assert numbers["maximum"] == pytest.approx(expected.max().item())
    share = expected[order[0]] ** 2 / (expected**2).sum()
    assert numbers["top_tenth_share"] == pytest.approx(share.item())  # a tenth of 14 samples is 1
    assert numbers["largest"][0]["share"] == pytest.approx(share.item())


def test_labels_predictions_and_losses_of_the_largest() -> None:
    model, (x, y) = classifier(), images()
    numbers = PANEL.measure(make_case(model, nn.CrossEntropyLoss(), (x, y), Settings()))
    for row in numbers["largest"]:
        i = row["index"]
        assert row["label"] == y[i]
        assert row["predicted"] == model(x[i : i + 1]).argmax()
        assert row["loss"] == pytest.approx(nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).item(), rel=1e-5)


def test_images_are_shown_and_other_inputs_are_not() -> None:
    case = make_case(classifier(), nn.CrossEntropyLoss(), images(), Settings())
    view = PANEL.show(case, PANEL.measure(case))
    assert len(view.pictures) == 12
    assert view.pictures[0].png.startswith(b"\x89PNG")
    assert view.pictures[0].text.startswith("label ")
    with torch.random.fork_rng():
        plain = make_case(nn.Linear(5, 2), nn.MSELoss(), (torch.rand(6, 5), torch.rand(6, 2)), Settings())
    numbers = PANEL.measure(plain)
    view = PANEL.show(plain, numbers)
    assert view.pictures == ()
    assert "label" not in numbers["largest"][0]
    assert [c.key for c in view.tables[0].columns] == ["index", "norm", "loss", "share"]


def test_a_data_set_says_that_the_first_batch_was_used() -> None:
    x, y = images()
    numbers = PANEL.measure(make_case(classifier(), nn.CrossEntropyLoss(), [(x[:4], y[:4]), (x[4:], y[4:])], Settings()))
    assert len(numbers["norms"]) == 4
    assert "Computed on the first of 2 batches (4 samples)." in numbers["notes"]


def test_samples_without_any_gradient() -> None:
    params = {"w": torch.zeros(3)}
    data = (torch.ones(5, 3), torch.zeros(5))
    case = make_case((lambda p, x: x @ p["w"], params), nn.MSELoss(), data, Settings())
    numbers = PANEL.measure(case)
    assert numbers["maximum"] == 0
    assert numbers["top_tenth_share"] == 0
    assert len(PANEL.show(case, numbers).drawings) == 2
