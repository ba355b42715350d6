"""`divergence`: closed forms, rows, estimates and their errors, training through it, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hesse.core.errors import HolomorphyError, LeafError, MemoryBudgetError, MixedSamplesError, StructureError, UnsupportedError
from hesse.derivatives import divergence

from ..autodiff.programs import REAL, by_loops, seeded


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_closed_forms() -> None:
    A, x = seeded(3, 3), seeded(5, 3, seed=1)
    got = divergence(lambda t: (t @ A.mT).sin(), x)
    torch.testing.assert_close(got.divergence, ((x @ A.mT).cos() * A.diagonal()).sum(1))
    torch.testing.assert_close(got.value, (x @ A.mT).sin())
    assert torch.equal(got.standard_error, torch.zeros(5, dtype=REAL))
    one = divergence(lambda t: (A @ t).sin(), x[2])
    assert one.divergence.shape == ()
    torch.testing.assert_close(one.divergence, got.divergence[2])
    assert one.standard_error.shape == ()
    rotation = divergence(lambda t: torch.stack([-t[:, 1], t[:, 0]], 1), x[:, :2])
    torch.testing.assert_close(rotation.divergence, torch.zeros(5, dtype=REAL), rtol=0, atol=0)
    inverse_square = divergence(lambda t: t / t.norm(dim=1, keepdim=True) ** 3, x)
    torch.testing.assert_close(inverse_square.divergence, torch.zeros(5, dtype=REAL), rtol=0, atol=1e-11)
    with pytest.raises(StructureError, match="no tensor or float"):
        divergence(lambda t: t, {})


def test_shapes_and_trees() -> None:
    torch.manual_seed(0)
    image = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 3, padding=1)).double()
    x = seeded(3, 2, 4, 5)
    got = divergence(image, x).divergence
    expected = [by_loops(lambda t: image(t[None])[0], row).reshape(40, 40).trace() for row in x]
    torch.testing.assert_close(got, torch.stack(expected))
    torch.testing.assert_close(divergence(image, x, structure="dense").divergence, got.sum())
    tree = {"a": seeded(4, 2, 3), "b": seeded(4, seed=1)}

    def field(p: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"a": p["a"] ** 2 * p["b"][:, None, None], "b": p["b"] ** 3 + p["a"].sum((1, 2))}

    rows = 2 * tree["a"].sum((1, 2)) * tree["b"] + 3 * tree["b"] ** 2
    torch.testing.assert_close(divergence(field, tree, structure="batched").divergence, rows)
    torch.testing.assert_close(divergence(field, tree).divergence, rows.sum())  # a leaf with one axis: one point
    with pytest.raises(StructureError, match="structure and the shapes of x"):
        divergence(lambda t: t[:, :1], x[:, 0, 0])
    with pytest.raises(StructureError, match="structure and the shapes of x"):
        divergence(lambda p: p["a"], {"a": x})


def test_the_estimate_lies_within_its_error() -> None:
    A = seeded(4, 4)
    x, exact = seeded(3, 4, seed=1), None
    for noise in ("rademacher", "gaussian"):
        inside = 0
        for seed in range(70):
            got = divergence(
                lambda t: (t @ A.mT).tanh(),
                x,
                method="hutchinson",
                samples=60,
                noise=noise,  # pyright: ignore[reportArgumentType]
                generator=_generator(seed),
            )
            exact = divergence(lambda t: (t @ A.mT).tanh(), x).divergence if exact is None else exact
            inside += int(((got.divergence - exact).abs() <= 2 * got.standard_error).sum())
        assert 186 <= inside <= 208, noise  # 95 % of 210 are 200, standard deviation 3


def test_random_signs_are_exact_for_a_diagonal_jacobian() -> None:
    x = seeded(5, 3)
    got = divergence(torch.sin, x, method="hutchinson", samples=2)
    torch.testing.assert_close(got.divergence, x.cos().sum(1))
    torch.testing.assert_close(got.standard_error, torch.zeros(5, dtype=REAL), rtol=0, atol=1e-14)
    loose = divergence(torch.sin, x, method="hutchinson", samples=2, noise="gaussian")
    assert bool((loose.standard_error > 1e-3).all())
    alone = divergence(torch.sin, x[0], method="hutchinson", samples=1)
    torch.testing.assert_close(alone.divergence, x[0].cos().sum())
    assert bool(torch.isinf(alone.standard_error))


def test_the_generator_decides() -> None:
    A, x = seeded(4, 4), seeded(3, 4, seed=1)

    def estimate(generator: torch.Generator | None) -> Tensor:
        return divergence(lambda t: t @ A, x, method="hutchinson", samples=3, generator=generator).divergence

    state = torch.get_rng_state()
    assert torch.equal(estimate(None), estimate(None))
    assert torch.equal(estimate(_generator(5)), estimate(_generator(5)))
    source = _generator(5)
    assert not torch.equal(estimate(source), estimate(source))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("method", ["exact", "hutchinson"])
def test_a_flow_trains(method: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = seeded(4, 3)
    options: dict[str, Any] = {"method": method, "samples": 2}

    def objective() -> Tensor:
        value, found, _ = divergence(net, x, **options)
        return found.square().sum() + value.sum()

    objective().backward()
    weight, h, values = net[0].weight, 1e-4, []
    assert weight.grad is not None
    with torch.no_grad():
        for step in (h, -2 * h):
            weight[2, 1] += step
            values.append(float(objective()))
    assert weight.grad[2, 1].item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6)
    with torch.no_grad():
        assert not divergence(net, x, **options).divergence.requires_grad


def test_transforms() -> None:
    X = seeded(5, 3)
    inside = torch.func.vmap(lambda t: divergence(lambda s: s**3, t).divergence)(X)
    torch.testing.assert_close(inside, 3 * (X**2).sum(1))
    slope = torch.func.grad(lambda t: divergence(lambda s: s**3, t).divergence.sum())(X)
    torch.testing.assert_close(slope, 6 * X)
    with pytest.raises(UnsupportedError, match="vmap"):
        torch.func.vmap(lambda t: divergence(torch.sin, t, method="hutchinson").divergence)(X[None])


def test_mixed_rows_are_refused() -> None:
    x = seeded(6, 3)
    norm = nn.BatchNorm1d(3).double()
    for method in ("exact", "hutchinson"):
        with pytest.raises(MixedSamplesError, match="influences other rows"):
            divergence(norm, x, method=method)  # pyright: ignore[reportArgumentType]
    with pytest.raises(MixedSamplesError):
        divergence(lambda t: t * t[0, 0], x)
    dense = divergence(norm, x, structure="dense").divergence
    torch.testing.assert_close(dense, by_loops(norm, x).reshape(18, 18).trace())


def test_refusals() -> None:
    x = seeded(2, 3)
    with pytest.raises(StructureError, match="noise is one of"):
        divergence(torch.sin, x, method="hutchinson", noise="uniform")  # pyright: ignore[reportArgumentType]
    with pytest.raises(StructureError, match="method is one of"):
        divergence(torch.sin, x, method="xtrace")  # pyright: ignore[reportArgumentType]
    with pytest.raises(StructureError, match="at least 1"):
        divergence(torch.sin, x, method="hutchinson", samples=0)
    with pytest.raises(HolomorphyError):
        divergence(torch.sin, x + 0j)
    with pytest.raises(LeafError):
        divergence(lambda t: t, torch.ones(3, dtype=torch.int64))


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_the_estimate_does_not_depend_on_the_budget(noise: Any) -> None:
    W = seeded(3, 3)
    x = seeded(700, 3)  # more rows than one generator draws
    runs: list[int] = []

    def field(t: Tensor) -> Tensor:
        runs.append(len(t))
        return torch.tanh(t @ W)

    def estimate(memory: Any, given: Tensor = x, **options: Any) -> Any:
        return divergence(field, given, method="hutchinson", samples=5, noise=noise, memory=memory, **options)

    whole, parts = estimate(None), estimate(60_000)
    assert max(runs) == 700
    assert runs[-1] < 700
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b)
    alone = divergence(field, x, method="hutchinson", samples=1, noise=noise, memory=60_000)
    assert bool(torch.isinf(alone.standard_error).all())
    torch.testing.assert_close(estimate(None, structure="dense")[1:], estimate(2**20, structure="dense")[1:])


def test_the_least_that_is_named_suffices() -> None:
    W, x = seeded(300, 300), seeded(300)
    for options in ({}, {"method": "hutchinson", "samples": 40}):
        with pytest.raises(MemoryBudgetError) as caught:
            divergence(lambda t: torch.tanh(t @ W), x, memory=2000, **options)  # pyright: ignore[reportArgumentType]
        least = caught.value.least
        found = divergence(lambda t: torch.tanh(t @ W), x, memory=least, **options)  # pyright: ignore[reportArgumentType]
        expected = divergence(lambda t: torch.tanh(t @ W), x, **options)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(found, expected)
