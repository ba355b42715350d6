"""Writes to inputs behind autograd's back are found in every mode: softmax, normalization and activation in place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hesse.check.module import check_module

from ..planted import draw


class Written(nn.Module):
    """A layer that writes to its input through `.data` where `when` says so; its values and gradients stay right."""

    def __init__(self, write, when=lambda module, x: True, *, inplace: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(2, 4, seed=5))
        self.write, self.when = write, when
        self.activation = nn.ReLU(inplace=inplace)

    def forward(self, x):
        if self.when(self, x):
            self.write(x.data)
        return self.activation(torch.softmax(x, -1) @ self.weight.mT)


def shift(x):
    x.sub_(x.amax(-1, keepdim=True))


def found(module: nn.Module, level: str = "quick", dtype: torch.dtype = torch.float64) -> set[str]:
    report = check_module(module.to(dtype), draw(5, 4, dtype=dtype), level=level)
    return {f.check for f in report.findings if f.leaf == "inputs.0" and "in place" in f.diagnosis}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_softmax_that_shifts_its_input(dtype) -> None:
    assert found(Written(shift), dtype=dtype) >= {"unchanged by the forward pass"}
    assert not found(Written(shift, lambda module, x: False), dtype=dtype)


def test_in_eval_mode_only() -> None:
    assert found(Written(shift, lambda module, x: not module.training)) == {"eval mode: unchanged by the forward pass"}


def test_where_nothing_is_recorded() -> None:
    silent = Written(shift, lambda module, x: not torch.is_grad_enabled())
    assert found(silent, "full") == {"unchanged by the forward pass under no_grad"}
    constant = Written(shift, lambda module, x: not x.requires_grad and torch.is_grad_enabled())
    assert "unchanged by the forward pass where nothing requires gradients" in found(constant, "full")


def test_a_module_that_says_that_it_works_in_place() -> None:
    assert found(Written(shift, inplace=True)) == {"inputs of a module in place", "eval mode: inputs of a module in place"}
    assert check_module(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3)).double(), draw(5, 4)).ok


class Clipped(nn.Module):
    """Indices beyond the table are clipped: in place, once and for all."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.table, self.in_place = nn.Parameter(draw(6, 3)), in_place

    def forward(self, index):
        index = index.clamp_(max=4) if self.in_place else index.clamp(max=4)
        return torch.tanh(self.table[index])


@pytest.mark.parametrize("in_place", [True, False])
def test_indices_that_only_the_first_call_changes(in_place) -> None:
    index = torch.tensor([[0, 5], [2, 3]])
    report = check_module(Clipped(in_place=in_place), index)
    assert ("unchanged by the forward pass", "inputs.0") in {(f.check, f.leaf) for f in report.findings} or not in_place
    assert report.ok != in_place
    assert index[0, 1] == 5
