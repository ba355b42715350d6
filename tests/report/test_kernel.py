"""The tangent kernel against plain loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from hesse.report.case import Settings, make_case
from hesse.report.kernel import cosines, measure_kernel

from .small import classifier, flat, images

LOSS = nn.CrossEntropyLoss()


def kernel(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Inner products of output gradients, averaged over the three outputs, in plain loops."""
    params = list(model.parameters())
    rows = [[flat(list(torch.autograd.grad(model(x[i : i + 1])[0, c], params))) for c in range(3)] for i in range(len(x))]
    return torch.tensor([[sum(float(a @ b) for a, b in zip(p, q, strict=True)) / 3 for q in rows] for p in rows])


def measure(model, loss, data) -> tuple[dict, list[str]]:
    notes: list[str] = []
    found = measure_kernel(make_case(model, loss, data, Settings()), notes)
    assert found is not None
    return found, notes


def test_the_kernel_is_that_of_a_loop_sorted_by_label() -> None:
    model, (x, y) = classifier(torch.float64), images(14, torch.float64)
    found = measure(model, LOSS, (x, y))[0]
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
    found, notes = measure(classifier(), LOSS, images(200))
    assert len(found["samples"]) == 60
    assert notes == ["The kernel is that of 60 samples, spread evenly over the batch."]


def test_one_output_a_sample_without_labels() -> None:
    params = {"w": torch.tensor([1.0, 2.0]), "b": torch.ones(())}
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    found, _ = measure((lambda p, x: torch.tanh(x @ p["w"] + p["b"]), params), nn.MSELoss(), (x, torch.zeros(3)))
    slope = 1 - torch.tanh(x @ params["w"] + 1) ** 2
    rows = slope[:, None] * torch.cat([x, torch.ones(3, 1)], 1)
    torch.testing.assert_close(torch.tensor(found["matrix"]), rows @ rows.T)
    assert found["labels"] is None
    assert found["cosine_same_class"] is None


def test_many_outputs_are_combined_without_bias() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(30, 40)).double()
    x, y = images(6, torch.float64)
    case, notes = make_case(model, LOSS, (x, y), Settings()), []
    found = [measure_kernel(replace(case, settings=Settings(seed=seed)), notes) for seed in range(30)]
    estimates = [torch.tensor(kernel["matrix"]) for kernel in found if kernel]
    assert "The kernel's average over 40 outputs is estimated from 10 random signed sums of them." in notes
    order = y.argsort(stable=True)
    inner = x.flatten(1)[order] @ x.flatten(1)[order].T + 1  # of one linear output; the same for all
    mean = torch.stack(estimates).mean(0)
    torch.testing.assert_close(mean, inner.to(mean.dtype), rtol=0.05, atol=0.0)


@pytest.mark.parametrize("inputs", ["positional", "keyword"])
def test_many_outputs_of_a_model_with_two_inputs(inputs: str) -> None:
    params = {"w": torch.rand(4, 12, generator=torch.Generator().manual_seed(0))}
    a, b = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(1))

    def f(p, a, b):
        return (a + 2 * b) @ p["w"]

    batch = ((a, b) if inputs == "positional" else {"a": a, "b": b}, torch.zeros(5, 12))
    found, _ = measure((f, params), nn.MSELoss(), batch)
    expected = cosines((a + 2 * b) @ (a + 2 * b).T)
    torch.testing.assert_close(cosines(torch.tensor(found["matrix"])), expected)


def test_cosines_leave_zero_rows_zero() -> None:
    matrix = torch.tensor([[4.0, 0.0, 2.0], [0.0, 0.0, 0.0], [2.0, 0.0, 9.0]])
    torch.testing.assert_close(cosines(matrix), torch.tensor([[1, 0, 1 / 3], [0, 0, 0], [1 / 3, 0, 1]]))
    assert matrix[1, 1] == 0
