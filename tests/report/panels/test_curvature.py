"""The panel of curvature against dense matrices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hesse.report.case import Settings, make_case
from hesse.report.panels import PANELS
from hesse.report.panels.curvature import cosines

from ..small import classifier, dense_hessian, flat, images

PANEL = PANELS["curvature"]
LOSS = nn.CrossEntropyLoss()


def kernel(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Inner products of output gradients, averaged over the three outputs, in plain loops."""
    params = list(model.parameters())
    rows = [[flat(list(torch.autograd.grad(model(x[i : i + 1])[0, c], params))) for c in range(3)] for i in range(len(x))]
    return torch.tensor([[sum(float(a @ b) for a, b in zip(p, q, strict=True)) / 3 for q in rows] for p in rows])


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


def test_the_kernel_is_that_of_a_loop_sorted_by_label() -> None:
    model, (x, y) = classifier(torch.float64), images(14, torch.float64)
    found = PANEL.measure(make_case(model, LOSS, (x, y), Settings()))["kernel"]
    assert found["labels"] == sorted(y.tolist())
    assert y[found["samples"]].tolist() == found["labels"]
    expected = kernel(model, x)[found["samples"]][:, found["samples"]]
    torch.testing.assert_close(torch.tensor(found["matrix"]), expected)
    angle = cosines(expected)
    pairs = [(i, j) for i in range(14) for j in range(14) if i != j]
    same = [angle[i, j].item() for i, j in pairs if found["labels"][i] == found["labels"][j]]
    other = [angle[i, j].item() for i, j in pairs if found["labels"][i] != found["labels"][j]]
    assert found["cosine_same_class"] == pytest.approx(sum(same) / len(same), rel=1e-5)
    assert found["cosine_other_class"] == pytest.approx(sum(other) / len(other), rel=1e-5)
    values = torch.linalg.eigvalsh(expected.double())
    assert found["largest_share"] == pytest.approx((values[-1] / values.sum()).item(), rel=1e-5)


def test_many_samples_are_thinned_out() -> None:
    found = PANEL.measure(make_case(classifier(), LOSS, images(200), Settings()))
    assert len(found["kernel"]["samples"]) == 60
    assert "The kernel is that of 60 samples, spread evenly over the batch." in found["notes"]


def test_one_output_a_sample_without_labels() -> None:
    params = {"w": torch.tensor([1.0, 2.0]), "b": torch.ones(())}
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    case = make_case((lambda p, x: torch.tanh(x @ p["w"] + p["b"]), params), nn.MSELoss(), (x, torch.zeros(3)), Settings())
    numbers = PANEL.measure(case)
    found = numbers["kernel"]
    slope = 1 - torch.tanh(x @ params["w"] + 1) ** 2
    rows = slope[:, None] * torch.cat([x, torch.ones(3, 1)], 1)
    torch.testing.assert_close(torch.tensor(found["matrix"]), rows @ rows.T)
    assert found["labels"] is None
    assert found["cosine_same_class"] is None
    assert len(PANEL.show(case, numbers).drawings) == 2


def test_outputs_of_other_shapes_have_no_kernel_but_the_rest() -> None:
    with torch.random.fork_rng():
        model = nn.Conv1d(1, 2, 3)
    case = make_case(model, nn.MSELoss(), (torch.rand(4, 1, 7), torch.rand(4, 2, 5)), Settings())
    numbers = PANEL.measure(case)
    assert numbers["kernel"] is None
    assert any(note.startswith("No tangent kernel") for note in numbers["notes"])
    assert len(PANEL.show(case, numbers).drawings) == 1


def test_cosines_leave_zero_rows_zero() -> None:
    matrix = torch.tensor([[4.0, 0.0, 2.0], [0.0, 0.0, 0.0], [2.0, 0.0, 9.0]])
    torch.testing.assert_close(cosines(matrix), torch.tensor([[1, 0, 1 / 3], [0, 0, 0], [1 / 3, 0, 1]]))
    assert matrix[1, 1] == 0
