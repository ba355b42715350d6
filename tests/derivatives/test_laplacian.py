"""`laplacian`: closed forms, harmonic functions, rows, training through it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hesse.core.errors import MemoryBudgetError, MixedSamplesError, NonScalarError
from hesse.derivatives import laplacian

from ..autodiff.programs import REAL, hessian_by_loops, seeded


def test_closed_forms() -> None:
    x = seeded(7, 3)
    got = laplacian(lambda p: torch.sin(p.prod(-1)), x, structure="batched")
    squares = torch.stack([x[:, 1] * x[:, 2], x[:, 0] * x[:, 2], x[:, 0] * x[:, 1]]).square().sum(0)
    torch.testing.assert_close(got.laplacian, -x.prod(-1).sin() * squares)
    torch.testing.assert_close(got.value, x.prod(-1).sin())
    single = laplacian(lambda p: torch.sin(p.prod()), x[0])
    assert single.laplacian.shape == ()
    torch.testing.assert_close(single.laplacian, got.laplacian[0])
    harmonic = laplacian(lambda p: 1 / p.norm(dim=-1, keepdim=True), x, structure="batched").laplacian
    torch.testing.assert_close(harmonic, torch.zeros(7, dtype=REAL), rtol=0, atol=1e-11)


def test_shapes_and_trees() -> None:
    x = {"a": seeded(4, 2, 2), "b": seeded(4, seed=1), "k": 3}
    got = laplacian(lambda p: (p["a"] ** 3).sum((1, 2)) * p["b"] ** 2, x, structure="batched").laplacian
    expected = 6 * x["a"].sum((1, 2)) * x["b"] ** 2 + 2 * (x["a"] ** 3).sum((1, 2))
    torch.testing.assert_close(got, expected)
    whole = laplacian(lambda p: (p["a"] ** 3).sum() * p["s"] ** 2, {"a": x["a"], "s": 2.0}).laplacian
    torch.testing.assert_close(whole, 24 * x["a"].sum() + 2 * (x["a"] ** 3).sum(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(laplacian(lambda t: t**3, seeded(5), structure="batched").laplacian, 6 * seeded(5))
    assert float(laplacian(lambda t: t.sum(), torch.zeros(0)).laplacian) == 0
    assert torch.equal(laplacian(lambda t: t.sum(1), torch.zeros(3, 0), structure="batched").laplacian, torch.zeros(3))
    assert float(laplacian(lambda t: 3 * t.sum(), seeded(4)).laplacian) == 0


def test_a_differential_equation_trains() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x = seeded(6, 2)
    residual = laplacian(net, x, structure="batched").laplacian
    (residual**2).mean().backward()
    weight = net[0].weight
    assert weight.grad is not None
    got, h = weight.grad[3, 1].item(), 1e-4

    def objective() -> float:
        rows = [hessian_by_loops(lambda t: net(t).sum(), row).trace() for row in x]
        return float(torch.stack(rows).square().mean())

    values = []
    with torch.no_grad():
        for step in (h, -2 * h):
            weight[3, 1] += step
            values.append(objective())
    assert got == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6)


def test_upstream_and_transforms() -> None:
    x = seeded(4).requires_grad_()
    slope = torch.autograd.grad(laplacian(lambda t: (t**4).sum(), x).laplacian, x)[0]
    torch.testing.assert_close(slope, 24 * x.detach())
    X = seeded(3, 4)
    torch.testing.assert_close(torch.func.vmap(lambda t: laplacian(lambda s: (s**4).sum(), t).laplacian)(X), 12 * (X**2).sum(1))
    inside = torch.func.grad(lambda t: laplacian(lambda s: s.sin().sum(1), t, structure="batched").laplacian.sum())(X)
    torch.testing.assert_close(inside, -X.cos())


def test_refusals() -> None:
    mixed = [lambda t: (t**2).sum().expand(3), lambda t: (t**2).sum(1) + t[0, 0] * t[1, 1]]
    for f in mixed:
        with pytest.raises(MixedSamplesError):
            laplacian(f, torch.zeros(3, 2, dtype=REAL), structure="batched")
        with pytest.raises(MixedSamplesError):
            laplacian(f, seeded(3, 2), structure="batched")
    with pytest.raises(NonScalarError):
        laplacian(lambda t: t**2, seeded(3))

    def cubes(t: Tensor) -> Tensor:
        return (t**3).sum()

    with pytest.raises(MemoryBudgetError) as caught:
        laplacian(cubes, seeded(50), memory=10)
    torch.testing.assert_close(laplacian(cubes, seeded(50), memory=caught.value.least).laplacian, 6 * seeded(50).sum())
