"""Tensors that are trained through a module but not registered are named by their place; borrowed and unused ones are not."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from hesse.check.module import check_module

from ..planted import draw


class Layer(nn.Module):
    """``sin(x W^T) s`` with a scale that `take` takes out of whatever is held."""

    def __init__(self, held: Any, take) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(2, 3, seed=5))
        self.held, self.take = held, take

    def forward(self, x):
        return torch.sin(x @ self.weight.mT) * self.take(self.held)


class Helper:
    def __init__(self, scale) -> None:
        self.scale = scale

    def __call__(self):
        return self.scale


@dataclasses.dataclass
class Options:
    scale: torch.Tensor


def scale() -> nn.Parameter:
    return nn.Parameter(draw(2, seed=6))


WRONG: dict[str, tuple[Any, Any, str]] = {
    "list": (lambda: [scale()], lambda h: h[0], "held[0]"),
    "dict": (lambda: {"a": 1, "b": scale()}, lambda h: h["b"], "held['b']"),
    "tuple in a dict in a list": (lambda: [{"a": (2, scale())}], lambda h: h[0]["a"][1], "held[0]['a'][1]"),
    "plain tensor": (lambda: draw(2).requires_grad_(), lambda h: h, "held"),
    "plain tensor in a list": (lambda: [draw(2).requires_grad_()], lambda h: h[0], "held[0]"),
    "object": (lambda: Helper(scale()), lambda h: h.scale, "held.scale"),
    "object that is called": (lambda: Helper(scale()), lambda h: h(), "held.scale"),
    "dataclass": (lambda: Options(scale()), lambda h: h.scale, "held.scale"),
    "module in a list": (lambda: [nn.PReLU(2, dtype=torch.float64)], lambda h: h[0].weight, "held[0].weight"),
    "modules in each other in a dict": (
        lambda: {"a": nn.Sequential(nn.PReLU(2, dtype=torch.float64))}, lambda h: h["a"][0].weight, "held['a'].0.weight"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "take", "place"), WRONG.values(), ids=WRONG)
def test_unregistered_tensors_are_named(make, take, place) -> None:
    report = check_module(Layer(make(), take), draw(4, 3))
    assert {(f.check, f.leaf) for f in report.findings} == {("registered parameters", place)}
    assert "no registered parameter" in report.findings[0].diagnosis


def test_a_part_of_a_module_that_holds_one() -> None:
    inner = Layer([scale()], lambda h: h[0])
    report = check_module(nn.Sequential(nn.Tanh(), inner), draw(4, 3, dtype=torch.float32).double())
    assert {f.leaf for f in report.findings} == {"1.held[0]"}


def test_registered_ones_pass() -> None:
    assert check_module(Layer(nn.ParameterList([scale()]), lambda h: h[0]), draw(4, 3)).ok
    assert check_module(Layer(nn.ParameterDict({"a": scale()}), lambda h: h["a"]), draw(4, 3)).ok
    layer = Layer(None, None)
    layer.own = scale()
    layer.take, layer.held = (lambda h: h[0]), [layer.own]
    assert check_module(layer, draw(4, 3)).ok


def test_a_parameter_borrowed_from_another_module_is_noted() -> None:
    lender = nn.PReLU(2, dtype=torch.float64)
    report = check_module(Layer([lender.weight], lambda h: h[0]), draw(4, 3))
    assert report.ok
    assert any("'held[0]', which another module registers" in note for note in report.notes)


def test_a_module_borrowed_from_its_owner_is_noted() -> None:
    owner = nn.Sequential(nn.PReLU(2, dtype=torch.float64))
    report = check_module(Layer([owner[0]], lambda h: h[0].weight), draw(4, 3))
    assert report.ok, report
    assert any("another module registers" in note for note in report.notes)


def test_what_is_borrowed_from_the_module_around_is_noted() -> None:
    layer = Layer([], lambda h: h[0].scale)
    owner = nn.Module()
    owner.scale, owner.part = scale(), layer
    layer.held.append(owner)
    report = check_module(layer, draw(4, 3))
    assert not any(f.check == "registered parameters" for f in report.findings), report
    assert any("another module registers" in note for note in report.notes)


def test_a_tensor_from_outside_is_noted() -> None:
    outside = draw(2).requires_grad_()
    report = check_module(Layer(None, lambda h: outside), draw(4, 3))
    assert report.ok
    assert any("no part of the module" in note for note in report.notes)


def test_one_without_a_gradient_is_passed_over() -> None:
    """A dummy that only has to require gradients, as for reentrant checkpoints."""
    report = check_module(Layer([draw(2).requires_grad_()], lambda h: 1.0 + 0.0 * h[0]), draw(4, 3))
    assert report.ok
    assert not any("held[0]" in note for note in report.notes)


class Computed(nn.Module):
    """Its weight is computed when it is made, or in each call."""

    def __init__(self, *, once: bool) -> None:
        super().__init__()
        self.raw, self.once = nn.Parameter(draw(2, 3)), once
        self.weight = self.raw.exp() if once else None

    def forward(self, x):
        self.last = x @ (self.weight if self.once else self.raw.exp()).mT
        return torch.tanh(self.last)


def test_a_weight_that_is_computed_once() -> None:
    report = check_module(Computed(once=True), draw(4, 3))
    assert ("registered parameters", "weight") in {(f.check, f.leaf) for f in report.findings}


def test_results_that_a_module_keeps_are_none() -> None:
    module = Computed(once=False)
    module(draw(4, 3))
    report = check_module(module, draw(4, 3))
    assert not any(f.check == "registered parameters" for f in report.findings), report
