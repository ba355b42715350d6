"""A replica is a copy: same numbers, nothing shared that could change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hesse.check.replica import Replica, call_model
from hesse.core.errors import LeafError, UnsupportedError


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 3, generator=generator), torch.randint(4, (5,), generator=generator)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(3, 4)
        self.second.weight = self.first.weight
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.first(x) + 2 * self.second(x)) * self.frozen


def test_gradient_is_that_of_the_original() -> None:
    model, loss, (x, y) = Tied(), nn.CrossEntropyLoss(), batch()
    trained = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(loss(model(x), y), trained)
    found = Replica(model, loss, (x, y)).gradient()
    assert list(found) == ["first.weight", "first.bias", "second.bias"]
    for got, wanted in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_float64_casts_everything_but_integers() -> None:
    weight = torch.tensor([1.0, 2, 3, 4])
    replica = Replica(Tied(), nn.CrossEntropyLoss(weight=weight), batch(), dtype=torch.float64)
    assert replica.batch[0].dtype == torch.float64
    assert replica.batch[1].dtype == torch.int64
    assert replica.value().dtype == torch.float64


def test_complex_parameters_keep_their_imaginary_parts() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.z = nn.Parameter(torch.tensor([1 + 2j, 3 - 1j]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.z).abs().sum(1)

    replica = Replica(Complex(), lambda a, b: a.sum(), (torch.ones(3, 2), torch.zeros(3)), dtype=torch.float64)
    assert replica.leaves["z"].dtype == torch.complex128
    assert replica.leaves["z"][0].item() == 1 + 2j


def test_the_original_does_not_change() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 4))
    (x, y), loss = batch(), nn.CrossEntropyLoss()
    model[0].weight.grad = torch.full_like(model[0].weight, 7.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    replica = Replica(model, loss, (x, y), dtype=torch.float64)
    replica.gradient()
    replica.output()
    with torch.no_grad():
        replica.leaves["0.weight"].add_(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert model[0].weight.grad is not None
    assert bool((model[0].weight.grad == 7).all())


def test_a_pair_of_function_and_nested_parameters() -> None:
    params = {"w": [torch.ones(3, 4), 2.0], "b": {"c": torch.zeros(4)}}
    x, y = batch()

    def f(p, inputs):
        return p["w"][1] * inputs @ p["w"][0] + p["b"]["c"]

    replica = Replica((f, params), nn.CrossEntropyLoss(), (x, y), dtype=torch.float64)
    assert list(replica.leaves) == ["w.0", "w.1", "b.c"]
    assert replica.gradient()["w.0"].shape == (3, 4)
    assert not params["w"][0].requires_grad


def test_unreached_parameters_have_a_zero_gradient() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 4), "unused": nn.Linear(2, 2)})
    model.forward = lambda x: model["used"](x)  # pyright: ignore[reportAttributeAccessIssue]
    replica = Replica((lambda p, x: x @ p["a"], {"a": torch.ones(3, 4), "b": torch.ones(2)}), nn.CrossEntropyLoss(), batch())
    assert torch.equal(replica.gradient()["b"], torch.zeros(2))


def test_call_model_takes_all_forms_of_inputs() -> None:
    def f(p, a, b=0):
        return p + a + 10 * b

    assert call_model((f, 1), 2) == 3
    assert call_model((f, 1), (2, 3)) == 33
    assert call_model((f, 1), {"a": 2, "b": 4}) == 43


def test_frozen_models_are_refused() -> None:
    with pytest.raises(LeafError, match="requires_grad"):
        Replica(nn.Linear(3, 4).requires_grad_(False), nn.CrossEntropyLoss(), batch())


def test_modules_that_cannot_be_copied_are_refused() -> None:
    model = nn.Linear(3, 4)
    model.cached = model.weight * 2  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnsupportedError, match=r"(?s)private copy of Linear.*pair \(f, params\)"):
        Replica(model, nn.CrossEntropyLoss(), batch())
