"""A module may read its parameters from a list or a dict of its own; they are the same parameters there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hesse.check.module import check_module

from ..planted import draw, planted


class Listed(nn.Module):
    """``tanh(x W^T + b)`` whose operation reads W and b from where `kind` says."""

    def __init__(self, kind: str, factor: float = 1.0) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(draw(2, 3)), nn.Parameter(draw(2, seed=1))
        self.kind = kind
        self.held = {"list": [self.weight, self.bias], "dict": {0: self.weight, 1: self.bias},
                     "inside": [{0: [self.weight]}, self.bias]}[kind]  # fmt: skip
        self.product = planted(lambda x, w, b: x @ w.mT + b, lambda g, x, w, b: (g @ w, factor * g.mT @ x, g.sum(0)))

    def forward(self, x):
        weight = self.held[0][0][0] if self.kind == "inside" else self.held[0]
        return torch.tanh(self.product(x, weight, self.held[1]))


@pytest.mark.parametrize("level", ["quick", "full"])
def test_lists_follow(level) -> None:
    module = Listed("list")
    held = list(module.held)
    report = check_module(module, draw(4, 3), level=level)
    assert report.ok, report
    assert all(a is b for a, b in zip(module.held, held, strict=True))


@pytest.mark.parametrize("kind", ["list", "dict", "inside"])
def test_a_wrong_derivative_is_seen_through_them(kind) -> None:
    findings = check_module(Listed(kind, 1.1), draw(4, 3)).findings
    assert {(f.check, f.leaf) for f in findings} >= {("reverse mode", "weight")}
    assert check_module(Listed(kind), draw(4, 3)).ok
