"""Errors that only show at other lengths of axes, and in regions of leaves that are no data."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hesse.check import check_derivatives
from hesse.check.module import check_module

from ..planted import draw, planted


def even_only(g, x):
    return g * x.cos() * (1.0 if x.shape[-1] % 2 == 0 else 1.5)


def wide(g, x, w):
    factor = 1.1 if x.shape[1] % 2 == 0 else 1.0
    return factor * g @ w, g.mT @ x


class Bias(nn.Module):
    """A bias over maps, whose gradient is right for maps of one pixel."""

    def __init__(self, *, right: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(draw(3))
        self.added = planted(lambda x, b: x + b[:, None, None],
                             lambda g, x, b: (g, g.sum((0, 2, 3)) if right else g.sum(0).mean((1, 2))))  # fmt: skip

    def forward(self, x):
        return torch.tanh(self.added(x, self.bias))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_odd_lengths(dtype) -> None:
    found = check_derivatives(planted(torch.sin, even_only), draw(3, 4, dtype=dtype), level="full").findings
    assert found[0].check == "reverse mode at 5 elements along axis 1 of ''"


def test_the_matrix_beside_it_is_changed_too() -> None:
    f = planted(lambda x, w: x @ w.mT, wide)
    found = check_derivatives(lambda t: f(*t), (draw(4, 3), draw(2, 3, seed=1)), level="full").findings
    assert found[0].check == "reverse mode at 4 elements along axis 1 of '0'"


def test_maps_of_one_pixel() -> None:
    found = check_module(Bias(right=False), draw(2, 3, 1, 1), level="full").findings
    assert {f.leaf for f in found} == {"bias"}
    assert "elements along axis" in found[0].check
    assert check_module(Bias(right=True), draw(2, 3, 1, 1), level="full").ok


def test_regions_of_other_leaves() -> None:
    def rule(g, table, x):
        left = x.floor().clamp(0, 4).long()
        t = torch.where(left == 4, 1 - (x - left), x - left)  # the last cell is turned around
        slope = torch.zeros_like(table).index_add(0, left, g * (1 - t)).index_add(0, left + 1, g * t)
        return slope, g * (table[left + 1] - table[left])

    def forward(table, x):
        left = x.floor().clamp(0, 4).long()
        return table[left] * (1 - x + left) + table[left + 1] * (x - left)

    f = planted(forward, rule)
    point = (draw(6), torch.tensor([0.3, 3.9, 1.2, 2.6, 3.4, 0.7, 1.8], dtype=torch.float64))
    found = check_derivatives(lambda t: f(*t), point, level="full").findings
    assert found[0].check == "reverse mode at other numbers in '1'"


def test_axes_that_indices_point_into_are_never_shorter() -> None:
    lengths: list[int] = []

    def f(t):
        lengths.append(t.shape[1])
        return t[:, torch.tensor([0, 2])].sin()

    assert check_derivatives(f, draw(4, 3), level="full").ok
    assert set(lengths) == {3, 4}
