"""What train mode computes and eval mode uses has to be in the state_dict."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hesse.check.modules.call import Call
from hesse.check.modules.copies import check_trained
from hesse.check.modules.ledger import Ledger
from hesse.check.modules.start import sound_specimen
from hesse.core.random import make_generator

from ..planted import draw

_STATE = "state_dict after training, in eval mode"


def found(module: nn.Module, training: bool = True) -> set[str]:
    ledger = Ledger()
    specimen, _ = sound_specimen(module.train(training), Call((draw(5, 3),), {}), make_generator(), ledger)
    check_trained(specimen, ledger)
    return {finding.check for finding in ledger.findings}


class Scaled(nn.Module):
    """Scales by running averages, kept as `kind` says."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(2, 3))
        if kind == "attribute":
            self.running = torch.ones(3, dtype=torch.float64)
        else:
            self.register_buffer("running", torch.ones(3, dtype=torch.float64), persistent=kind == "buffer")

    def forward(self, x):
        if self.training:
            self.running = 0.9 * self.running + 0.1 * x.detach().square().mean(0)
        scale = x.square().mean(0) if self.training else self.running
        return torch.tanh(x / (0.1 + scale).sqrt() @ self.weight.mT)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["attribute", "transient buffer"])
def test_running_averages_that_are_not_saved(kind: str, training: bool) -> None:
    assert found(Scaled(kind), training) == {_STATE}


@pytest.mark.parametrize("module", [Scaled("buffer"), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2)])
def test_saved_ones_pass(module: nn.Module) -> None:
    assert not found(module.double())


class Accumulates(nn.Linear):
    """Hands out the mean of all that it computed in eval mode: such a cache says nothing of training."""

    def forward(self, input):
        y = super().forward(input)
        if self.training:
            return y
        total, count = self.__dict__.get("cache", (0, 0))
        self.cache = (total + y.detach() + count, count + 1)
        return y + self.cache[0]


def test_modules_that_change_from_call_to_call_are_passed_over() -> None:
    assert not found(Accumulates(3, 2, dtype=torch.float64))
