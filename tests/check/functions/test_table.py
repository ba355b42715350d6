"""Checks of equal elements and zeros come early where the point has some; no rows are tried within 60 evaluations."""

from __future__ import annotations

import pytest
import torch

from hesse.check import check_derivatives

from ..planted import draw, planted


def windows(x):
    return x.unfold(1, 2, 2)


def every_maximum(g, x):
    y = windows(x).amax(-1)
    return (g[..., None] * (windows(x) == y[..., None])).reshape(x.shape)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ties_that_the_point_has(dtype: torch.dtype) -> None:
    x = (draw(4, 6, dtype=dtype) - 0.8).relu()
    report = check_derivatives(planted(lambda x: windows(x).amax(-1), every_maximum), x)
    assert any("equal elements" in finding.check for finding in report.findings), report


def test_zeros_that_the_point_has() -> None:
    two = planted(torch.relu, lambda g, x: g * ((x > 0).to(x) + 2 * (x == 0)))
    assert {f.check for f in check_derivatives(two, draw(4, 4).relu().roll(1)).findings}
    assert check_derivatives(torch.relu, draw(4, 4).relu()).verdict != "wrong"


def test_no_rows() -> None:
    f = planted(lambda x, s: x * s, lambda g, x, s: (g * s, (0.0 if len(x) else 7.0) + (g * x).sum(0)))
    findings = check_derivatives(lambda t: f(*t), (draw(3, 4), draw(4, seed=1))).findings
    assert [finding.check for finding in findings] == ["no elements"]
