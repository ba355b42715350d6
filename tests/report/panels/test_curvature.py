"""The panel of curvature against dense matrices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hesse.report.case import Settings, make_case
from hesse.report.panels import PANELS

from ..small import classifier, dense_hessian, images

PANEL = PANELS["curvature"]
LOSS = nn.CrossEntropyLoss()


def test_trace_and_eigenvalues_are_those_of_the_dense_hessian() -> None:
    model, (x, y) = classifier(torch.float64), images(14, torch.float64)
    numbers = PANEL.measure(make_case(model, LOSS, (x, y), Settings()))
    H = dense_hessian(model, LOSS, x, y)
    values = torch.linalg.eigvalsh(H)
    outer = values[values.abs().argsort(descending=True)[:8]].sort(descending=True).values
    assert numbers["dimension"] == 187
    assert abs(numbers["trace"]["value"] - H.trace().item()) <= 5 * numbers["trace"]["standard_error"] + 1e-9
    assert numbers["trace"]["standard_error"] <= 0.05 * abs(numbers["trace"]["value"])
    for row, exact in zip(numbers["eigenvalues"], outer.tolist(), strict=True):
        assert abs(row["value"] - exact) <= row["residual"] + 1e-9
    assert numbers["largest_eigenvalue"] == pytest.approx(values[-1].item(), rel=1e-3)


def test_the_hessian_is_that_of_the_whole_data_set() -> None:
    model, (x, y) = classifier(torch.float64), images(14, torch.float64)
    numbers = PANEL.measure(make_case(model, LOSS, [(x[:5], y[:5]), (x[5:], y[5:])], Settings()))
    values = torch.linalg.eigvalsh(dense_hessian(model, LOSS, x, y))
    assert numbers["largest_eigenvalue"] == pytest.approx(values[-1].item(), rel=1e-3)
    assert any("all 2 batches" in note for note in numbers["notes"])
    assert len(numbers["kernel"]["samples"]) == 5


def test_outputs_of_other_shapes_have_no_kernel_but_the_rest() -> None:
    with torch.random.fork_rng():
        model = nn.Conv1d(1, 2, 3)
    case = make_case(model, nn.MSELoss(), (torch.rand(4, 1, 7), torch.rand(4, 2, 5)), Settings())
    numbers = PANEL.measure(case)
    assert numbers["kernel"] is None
    assert any(note.startswith("No tangent kernel") for note in numbers["notes"])
    assert len(PANEL.show(case, numbers).drawings) == 1
