"""Axes that are no batch: rows of the outputs that depend on where they stand in the inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hesse.check.module import check_module

from ..planted import draw, planted


class Positions(nn.Module):
    """Adds an encoding of the position along the first axis, up to 9 of them."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("code", draw(9, 1, 3, seed=3))
        self.weight = nn.Parameter(draw(2, 3))
        self.sine = planted(torch.sin, lambda g, x: g * x.cos() * (1.0 if len(x) == 4 else factor))

    def forward(self, x):
        return self.sine(x + self.code[: len(x)]) @ self.weight.mT


class Discounted(nn.Module):
    """Rows of a time series, each weighted by its time."""

    def forward(self, x):
        return (x * 0.9 ** torch.arange(len(x), dtype=x.dtype)[:, None]).square()


@pytest.mark.parametrize(("module", "shape"), [(Positions(), (4, 2, 3)), (Discounted(), (5, 2))])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_positions_are_no_batch(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    report = check_module(module.to(dtype), draw(*shape, dtype=dtype), level="full")
    assert report.ok, report
    assert any("depend on where they stand" in note for note in report.notes)


def test_other_lengths_of_such_an_axis_are_compared_all_the_same() -> None:
    findings = check_module(Positions(1.2), draw(4, 2, 3), level="full").findings
    assert {"1 row", "3 rows", "5 rows"} <= {finding.check for finding in findings}
