"""Modules that become what they are at their first call, and modules that remember what they saw."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hesse.check.module import check_module

from ..planted import draw


class ByData(nn.Module):
    """Shifts by the mean of its first batch; the flag is an attribute or a buffer."""

    def __init__(self, *, buffer: bool) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        if buffer:
            self.register_buffer("done", torch.tensor(0))
        else:
            self.done = False

    def forward(self, x):
        if not self.done:
            with torch.no_grad():
                self.shift.copy_(-x.mean(0))
                if isinstance(self.done, bool):
                    self.done = True
                else:
                    self.done.fill_(1)
        return torch.sin(x + self.shift)


@pytest.mark.parametrize("buffer", [True, False])
def test_initialization_by_the_first_batch(buffer: bool) -> None:
    module = ByData(buffer=buffer)
    report = check_module(module, draw(5, 3))
    assert report.ok, report
    assert any("first call sets parameters by its data" in note for note in report.notes)
    assert not module.shift.any() and not module.done


class Renormalizes(nn.Module):
    """Writes to its weight in each call, which changes nothing the second time."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(3 * draw(2, 3))

    def forward(self, x):
        self.weight.data.clamp_(-0.5, 0.5)
        return torch.sin(x @ self.weight.mT)


def test_a_module_that_writes_in_each_call_is_no_initialization() -> None:
    report = check_module(Renormalizes(), draw(5, 3))
    assert [f.check for f in report.findings] == ["parameters unchanged"]


class Remembers(nn.Linear):
    """Adds its last output."""

    def __init__(self) -> None:
        super().__init__(3, 2, dtype=torch.float64)
        self.last = torch.zeros(5, 2, dtype=torch.float64)

    def forward(self, input):
        y = super().forward(input) + self.last
        self.last = y.detach()
        return y


def test_memory_between_calls_is_named() -> None:
    (finding,) = check_module(nn.Sequential(Remembers()), draw(5, 3)).findings
    assert finding.check == "non-determinism"
    assert "remembers '0.last' from call to call" in finding.diagnosis
