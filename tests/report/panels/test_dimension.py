"""The panel of effective dimensions against dense matrices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hesse.core.errors import SymmetryError
from hesse.report.case import Settings, make_case
from hesse.report.panels import PANELS

from ..small import classifier, dense_ggn, images, wide_classifier

PANEL = PANELS["dimension"]


def test_small_models_are_exact() -> None:
    model, (x, y) = classifier(torch.float64), images(14, torch.float64)
    case = make_case(model, nn.CrossEntropyLoss(), (x, y), Settings())
    numbers = PANEL.measure(case)
    values = torch.linalg.eigvalsh(dense_ggn(model, x)).clamp_min(0)
    assert numbers["exact"]
    assert len(numbers["rows"]) == 13
    assert 1 <= numbers["rows"][0]["damping"] / values[-1] < 10
    for row in numbers["rows"]:
        assert row["value"] == pytest.approx((values / (values + row["damping"])).sum().item(), rel=1e-6)
        assert row["standard_error"] == 0
    view = PANEL.show(case, numbers)
    assert len(view.drawings) == len(view.sketches) == 1
    assert "of 187 directions" in view.headline


def test_larger_models_are_estimated_within_their_errors() -> None:
    model, loss, (x, y) = wide_classifier()
    numbers = PANEL.measure(make_case(model, loss, [(x[:6], y[:6]), (x[6:], y[6:])], Settings(seed=1)))
    values = torch.linalg.eigvalsh(dense_ggn(model, x)).clamp_min(0)
    assert not numbers["exact"]
    assert numbers["products"] <= 600
    for row in numbers["rows"]:
        expected = (values / (values + row["damping"])).sum().item()
        assert abs(row["value"] - expected) <= 4 * row["standard_error"] + 1e-6
        assert row["standard_error"] < 0.3 * expected


def test_an_nll_loss_has_the_fisher_matrix_in_its_place() -> None:
    model, _, (x, y) = wide_classifier()
    model = nn.Sequential(model[0], nn.Tanh(), model[2], nn.LogSoftmax(1))[1:]
    numbers = PANEL.measure(make_case(model, nn.NLLLoss(), (x[:, :20], y), Settings()))
    values = torch.linalg.eigvalsh(dense_ggn(model[:2], x[:, :20])).clamp_min(0)
    assert numbers["matrix"] == "expected Fisher matrix"
    assert any("No Gauss-Newton matrix: NLLLoss" in note for note in numbers["notes"])
    for row in numbers["rows"]:
        assert row["value"] == pytest.approx((values / (values + row["damping"])).sum().item(), rel=1e-6)


def test_a_matrix_with_negative_eigenvalues_is_refused() -> None:
    with torch.random.fork_rng():
        model, data = nn.Linear(3, 2).double(), (torch.rand(6, 3).double(), torch.rand(6, 2).double())
    with pytest.raises(SymmetryError, match="convex in the model's output"):
        PANEL.measure(make_case(model, lambda f, y: -((f - y) ** 2).mean(), data, Settings()))
    wide = wide_classifier()
    with pytest.raises(SymmetryError, match="convex in the model's output"):
        PANEL.measure(make_case(wide[0], lambda f, y: -(f**2).mean(), wide[2], Settings()))
