"""The panel of spectral densities against dense matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hesse.core.errors import UnsupportedError
from hesse.report.case import Case, Settings, make_case
from hesse.report.panels import PANELS, spectrum

from ..small import classifier, dense_ggn, dense_hessian, images, wide_classifier

PANEL = PANELS["spectrum"]
LOSS = nn.CrossEntropyLoss()


def blurred(values: Tensor, at: float, width: float) -> float:
    return sum(torch.exp(-0.5 * ((at - v) / width) ** 2).item() for v in values)


@pytest.mark.parametrize("as_set", [False, True])
def test_small_models_are_exact(as_set: bool) -> None:
    model, (x, y) = classifier(torch.float64), images(14, torch.float64)
    data = [(x[:5], y[:5]), (x[5:], y[5:])] if as_set else (x, y)
    case = make_case(model, LOSS, data, Settings())
    numbers = PANEL.measure(case)
    for key, dense in (("hessian", dense_hessian(model, LOSS, x, y)), ("ggn", dense_ggn(model, x))):
        values, found = torch.linalg.eigvalsh(dense), numbers[key]
        assert found["exact"]
        assert found["smallest"] == pytest.approx(values[0].item(), abs=1e-9)
        assert abs(found["trace"]["value"] - values.sum().item()) <= 4 * found["trace"]["standard_error"] + 1e-9
        top = [row[key] for row in numbers["eigenvalues"]]
        assert top == pytest.approx(values.flip(0)[:8].tolist(), rel=1e-6)
        for grid, density in (("grid", "density"), ("grid_near_zero", "density_near_zero")):
            for i in (0, 37, 120, 240):
                expected = blurred(values, numbers[grid][i], numbers["bandwidth"])
                assert found[density]["height"][i] == pytest.approx(expected, abs=1e-6)
            assert max(found[density]["error"]) == 0
    H, G = dense_hessian(model, LOSS, x, y), dense_ggn(model, x)
    values = torch.linalg.eigvalsh(H)
    assert numbers["bandwidth"] == pytest.approx((values[-1] - values[0]).item() / 400, rel=1e-3)
    assert numbers["negative"]["value"] == pytest.approx((values < -numbers["bandwidth"]).sum().item())
    explained = 1 - ((H - G).norm() / H.norm()).item() ** 2
    assert abs(numbers["explained"]["value"] - explained) <= 4 * numbers["explained"]["standard_error"] + 1e-9
    assert any("all 2 batches" in note for note in numbers["notes"]) == as_set
    view = PANEL.show(case, numbers)
    assert len(view.drawings) == 3
    assert view.headline.startswith("The Gauss-Newton matrix explains")
    assert [sketch.splitlines()[0].split(":")[0] for sketch in view.sketches] == ["Hessian", "Gauss-Newton matrix"]


def test_larger_models_are_estimated_within_their_errors() -> None:
    model, loss, (x, y) = wide_classifier()
    case = make_case(model, loss, (x, y), Settings(seed=1))
    numbers = PANEL.measure(case)
    H, G = dense_hessian(model, loss, x, y), dense_ggn(model, x)
    values = torch.linalg.eigvalsh(H)
    found = numbers["hessian"]
    assert not found["exact"]
    assert [row["hessian"] for row in numbers["eigenvalues"]] == pytest.approx(values.flip(0)[:8].tolist(), rel=1e-2)
    for key, dense in (("hessian", H), ("ggn", G)):
        density, exact = numbers[key]["density"], torch.linalg.eigvalsh(dense)
        for i in range(0, 800, 40):
            expected = blurred(exact, numbers["grid"][i], numbers["bandwidth"])
            assert abs(density["height"][i] - expected) <= 5 * density["error"][i] + 0.03 * expected + 0.05
    negative = (values < -numbers["bandwidth"]).sum().item()
    assert abs(numbers["negative"]["value"] - negative) <= 3 * numbers["negative"]["standard_error"]
    explained = 1 - ((H - G).norm() / H.norm()).item() ** 2
    assert abs(numbers["explained"]["value"] - explained) <= 4 * numbers["explained"]["standard_error"]
    assert PANEL.show(case, numbers).headline.count("About") == 1


def test_without_gauss_newton_matrix_the_hessian_is_shown_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(case: Case, notes: list[str]) -> None:
        raise UnsupportedError("A matrix is asked for.", "a loss that has none", "another loss")

    monkeypatch.setattr(spectrum, "gauss_newton", refuse)
    case = make_case(classifier(torch.float64), LOSS, images(6, torch.float64), Settings())
    numbers = PANEL.measure(case)
    assert numbers["partner"] is None and numbers["explained"] is None and "ggn" not in numbers
    assert "The Hessian alone: a loss that has none." in numbers["notes"]
    view = PANEL.show(case, numbers)
    assert len(view.drawings) == 3
    assert [column.key for column in view.tables[0].columns] == ["rank", "hessian", "hessian_residual"]


def test_a_loss_that_is_linear_in_the_parameters_has_no_curvature() -> None:
    params = {"w": torch.ones(3, dtype=torch.float64)}
    data = (torch.rand(5, 3).double(), torch.zeros(5).double())
    case = make_case((lambda p, x: x @ p["w"], params), lambda f, y: (f - y).mean(), data, Settings())
    numbers = PANEL.measure(case)
    assert numbers["explained"] is None
    assert [row["hessian"] for row in numbers["eigenvalues"]] == [0, 0, 0]
    assert max(numbers["hessian"]["density"]["height"]) == pytest.approx(3, rel=1e-3)
    assert len(PANEL.show(case, numbers).sketches) == 2
