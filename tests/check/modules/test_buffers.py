"""Derivatives by buffers: those that a call overwrites are no variables."""

from __future__ import annotations

import torch
from torch import nn

from hesse.check.module import check_module

from ..planted import draw, planted


class Iterates(nn.Module):
    """The largest singular value by one step of a power iteration, which the buffer remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(2, 3))
        self.register_buffer("u", nn.functional.normalize(draw(2, seed=1), dim=0))

    def forward(self, x):
        with torch.no_grad():
            v = nn.functional.normalize(self.weight.mT @ self.u, dim=0)
            self.u.copy_(nn.functional.normalize(self.weight @ v, dim=0))
        return torch.tanh(x @ self.weight.mT) * self.u


class Scales(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.register_buffer("scale", draw(3, seed=2))
        self.product = planted(lambda x, s: x * s, lambda g, x, s: (g * s, factor * (g * x).sum(0)))

    def forward(self, x):
        return self.product(x, self.scale)


def test_buffers_that_a_call_overwrites_are_passed_over() -> None:
    findings = check_module(Iterates(), draw(4, 3), level="full").findings
    assert not any(f.check == "buffers" for f in findings)


def test_others_are_compared() -> None:
    assert ("buffers", "scale") in {(f.check, f.leaf) for f in check_module(Scales(1.1), draw(4, 3), level="full").findings}
    assert check_module(Scales(1.0), draw(4, 3), level="full").ok
