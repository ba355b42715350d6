"""The panel of Kronecker factors against dense blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import hesse
from hesse.report.case import Settings, make_case
from hesse.report.panels import PANELS

from ..small import classifier, dense_ggn, images, wide_classifier

PANEL = PANELS["kfac"]


def blocks(model: nn.Module, matrix: Tensor) -> dict[str, Tensor]:
    found, start = {}, 0
    for name, parameter in model.named_parameters():
        stop = start + parameter.numel()
        found[name], start = matrix[start:stop, start:stop], stop
    return found


def test_errors_are_those_of_dense_blocks() -> None:
    model, loss, (x, y) = wide_classifier()
    case = make_case(model, loss, (x, y), Settings())
    numbers = PANEL.measure(case)
    exact = blocks(model, dense_ggn(model, x))
    for key, make in (("kfac", hesse.kfac), ("ekfac", hesse.ekfac)):
        near = blocks(model, hesse.dense(make(model, loss, (x, y), kind="ggn")))
        for row in numbers["rows"]:
            expected = ((exact[row["name"]] - near[row["name"]]).norm() / exact[row["name"]].norm()).item()
            assert row[key] == pytest.approx(expected, abs=4 * row[f"{key}_error"] + 1e-9), row["name"]
            assert row[f"{key}_error"] < 0.1
        total = sum((exact[name] - near[name]).norm() ** 2 for name in exact) / sum(b.norm() ** 2 for b in exact.values())
        assert numbers["together"][key] == pytest.approx(total.sqrt().item(), abs=4 * numbers["together"][f"{key}_error"])
    kinds = {row["name"]: (row["kind"], row["exact"]) for row in numbers["rows"]}
    assert kinds == {
        "0.weight": ("kronecker", False), "0.bias": ("exact", True), "2.weight": ("kronecker", False), "2.bias": ("exact", True)
    }
    assert sum(row["share"] for row in numbers["rows"]) == pytest.approx(1)
    assert numbers["rows"][0]["share"] == pytest.approx(
        (exact["0.weight"].trace() / sum(block.trace() for block in exact.values())).item(), rel=0.2
    )
    view = PANEL.show(case, numbers)
    assert view.headline.startswith("KFAC is farthest off in 0.weight")
    texts = [text.get_text() for text in view.drawings[0].figure.axes[0].texts]
    assert texts == ["exact, without factors"] * 2


def test_data_sets_and_many_outputs() -> None:
    model, (x, y) = classifier(torch.float64), images(14, torch.float64)
    whole, parts = (
        PANEL.measure(make_case(model, nn.CrossEntropyLoss(), data, Settings()))
        for data in ((x, y), [(x[:5], y[:5]), (x[5:], y[5:])])
    )
    assert [row["kfac"] for row in whole["rows"]] == pytest.approx([row["kfac"] for row in parts["rows"]], rel=1e-6)
    with torch.random.fork_rng():
        wide, data = nn.Linear(3, 40).double(), (torch.rand(6, 3).double(), torch.rand(6, 40).double())
    numbers = PANEL.measure(make_case(wide, nn.MSELoss(), data, Settings()))
    assert (numbers["matrix"], numbers["factors"]) == ("expected Fisher matrix", "sampled")
    assert any("40 outputs a sample" in note for note in numbers["notes"])


def test_only_the_parameters_with_most_of_the_trace_are_measured() -> None:
    with torch.random.fork_rng():
        model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(10)))
    numbers = PANEL.measure(make_case(model, nn.MSELoss(), (torch.rand(4, 2), torch.rand(4, 2)), Settings()))
    assert len(numbers["rows"]) == 16
    assert "The 16 parameters that hold most of the trace are shown, of 20." in numbers["notes"]


def test_a_parameter_that_is_unused_has_no_error() -> None:
    params = {"used": torch.ones(3), "deep": torch.ones(2)}
    case = make_case((lambda p, x: x @ p["used"], params), nn.MSELoss(), (torch.ones(5, 3), torch.zeros(5)), Settings())
    numbers = PANEL.measure(case)
    rows = {row["name"]: row for row in numbers["rows"]}
    assert rows["deep"]["kfac"] is None and rows["deep"]["kind"] == "unused"
    assert len(PANEL.show(case, numbers).drawings) == 1
