"""Moving one parameter along a line, and coming home."""

from __future__ import annotations

import torch

from hesse.check.float64 import Float64Loss, slope
from hesse.check.replica import Replica


def make() -> Float64Loss:
    params = {"a": torch.tensor([3.0, -4.0]), "zero": torch.zeros(5), "b": torch.ones(2, 3)}
    data = (torch.ones(4, 2), torch.zeros(4, 3))

    def f(p, x):
        return x * p["a"] @ p["b"] + p["zero"].sum()

    return Float64Loss(Replica((f, params), lambda out, y: (out - y).square().sum(), data, dtype=torch.float64))


def test_the_line_goes_through_the_point_and_leaves_it() -> None:
    loss = make()
    phi = loss.along("a", torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert phi(0.0) == 4 * 3 * (3 - 4) ** 2
    assert phi(0.5) == 4 * 3 * (3.5 - 3.0) ** 2
    assert loss.replica.leaves["a"].tolist() == [3.0, -4.0]


def test_sizes_are_root_mean_squares_and_never_zero() -> None:
    loss = make()
    assert loss.size("a") == (25 / 2) ** 0.5
    assert 0 < loss.size("zero") < 0.1


def test_shift_moves_every_parameter_and_home_is_exact() -> None:
    loss = make()
    before = {name: leaf.detach().clone() for name, leaf in loss.replica.leaves.items()}
    gradient = loss.shift(torch.Generator().manual_seed(0))
    assert not torch.equal(gradient["a"], loss.gradient["a"])
    assert all(not torch.equal(leaf.detach(), before[name]) for name, leaf in loss.replica.leaves.items())
    loss.go_home()
    assert all(torch.equal(leaf.detach(), before[name]) for name, leaf in loss.replica.leaves.items())


def test_slope_is_the_real_inner_product() -> None:
    assert slope(torch.tensor([1 + 2j]), torch.tensor([3 - 1j])) == 1.0
