"""A report as a whole: its panels, its costs, what it refuses, and that it touches nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hesse.core.errors import StructureError
from hesse.report import Settings, UserCodeError, make_report, to_json
from hesse.report.panel import look_up
from hesse.report.report import choose_panels

from .small import classifier, images

LOSS = nn.CrossEntropyLoss()


def numbers_of(report) -> dict:
    return {key: panel["numbers"] for key, panel in to_json(report)["panels"].items()}


def test_all_panels_in_order_with_their_costs() -> None:
    report = make_report(classifier(), LOSS, images(), name="case")
    keys = [result.panel.key for result in report.results]
    assert keys == ["check", "samples", "layers", "curvature", "spectrum", "dimension", "kfac"]
    for result in report.results:
        assert result.cost.seconds > 0
        assert result.cost.gradients == pytest.approx(result.cost.seconds / report.about["gradient_seconds"])
        assert result.view.status in ("good", "note")
        assert result.view.drawings
        assert result.title
    assert not report.refused
    assert report.about["target"] == "case"
    assert report.about["parameters"] == 187
    assert report.about["samples"] == 14


def test_a_subset_of_panels_gives_the_same_numbers() -> None:
    whole = numbers_of(make_report(classifier(), LOSS, images(), settings=Settings(seed=3)))
    part = numbers_of(make_report(classifier(), LOSS, images(), settings=Settings(("curvature", "check"), seed=3)))
    assert list(part) == ["curvature", "check"]
    assert all(part[key] == whole[key] for key in part)


def test_the_seed_moves_random_directions_only() -> None:
    settings = (Settings(("check", "samples"), seed=seed) for seed in (1, 2))
    one, two = (numbers_of(make_report(classifier(), LOSS, images(), settings=s)) for s in settings)
    assert one["samples"] == two["samples"]
    assert one["check"]["curve"] != two["check"]["curve"]


def test_float64_on_request() -> None:
    report = make_report(classifier(), LOSS, images(), settings=Settings(("check", "layers"), dtype=torch.float64))
    assert report.about["dtype"] == "float64"
    check = report.results[0].numbers
    assert check["own_dtype"] == "float64"
    assert check["worst_own_dtype_error"] < 1e-13


def test_nothing_of_the_users_changes(untouched: None) -> None:
    model, loss, (x, y) = classifier(), nn.CrossEntropyLoss(weight=torch.ones(3)), images()
    model.append(nn.Identity().train())
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model.register_buffer("counter", torch.zeros(1))
    before, data = copy.deepcopy(model), (x.clone(), y.clone())
    make_report(model, loss, (x, y), settings=Settings(dtype=torch.float64))
    assert list(model.state_dict()) == list(before.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True))
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[3].weight.grad is None
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(x, data[0])
    assert torch.equal(y, data[1])
    assert x.grad is None


def test_an_error_of_one_panel_stops_none_of_the_others() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = classifier()

        def forward(self, x):
            return self.net(x) @ torch.eye(3)  # cannot be computed in float64

    report = make_report(Constant(), LOSS, images(), settings=Settings(("check", "samples")))
    check, samples = report.results
    assert report.refused == (check,)
    assert check.numbers["error"]["kind"] == "UnsupportedError"
    assert "float64" in check.view.headline
    assert samples.view.status == "note"


def test_an_exception_of_the_users_in_a_panel_is_the_users() -> None:
    class Data:
        reads = 0

        def __iter__(self):
            Data.reads += 1
            yield images()
            if Data.reads > 1:
                raise OSError("the disk went away")

    for settings in (Settings(("curvature",)), Settings(("curvature",), dtype=torch.float64)):
        Data.reads = 0
        with pytest.raises(UserCodeError, match=r"panel 'curvature'.*OSError: the disk went away"):
            make_report(classifier(), LOSS, Data(), settings=settings)


def test_a_defect_without_the_users_frames_is_not_called_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    from hesse.report.panels import check

    monkeypatch.setattr(check, "check_parameters", dict.fromkeys)  # raises TypeError in no one's line
    with pytest.raises(TypeError):
        make_report(classifier(), LOSS, images(), settings=Settings(("check",)))


@pytest.mark.parametrize("keys", [("check", "chekc"), ()])
def test_unknown_panels_are_refused(keys: tuple[str, ...]) -> None:
    with pytest.raises(StructureError, match="choose among check, samples, layers, curvature, spectrum, dimension, kfac"):
        choose_panels(keys)


def test_panels_named_twice_run_once() -> None:
    assert [panel.key for panel in choose_panels(["layers", "check", "layers"])] == ["layers", "check"]


def test_a_memory_budget_that_is_too_small_is_refused_in_the_panel() -> None:
    report = make_report(classifier(), LOSS, images(), settings=Settings(("curvature",), memory=2000))
    assert report.refused
    assert report.refused[0].numbers["error"]["kind"] == "MemoryBudgetError"


def test_panels_may_be_chosen_among_some() -> None:
    assert [panel.key for panel in choose_panels(None, ("spectrum", "kfac"))] == ["spectrum", "kfac"]
    with pytest.raises(StructureError, match="choose among spectrum, kfac"):
        choose_panels(["check"], ("spectrum", "kfac"))


def test_look_up() -> None:
    numbers = {"a": {"b": [1, {"c": 2}]}}
    assert look_up(numbers, "a.b.1.c") == 2
    assert look_up(numbers, "a.b.7") is None
    assert look_up(numbers, "a.x.c") is None
