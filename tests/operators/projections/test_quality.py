"""What projections promise: the identity in expectation, norms and inner products within the bounds of the theory."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

import hesse

from ..zoo import drawing
from .test_numbers import KINDS, make

SEEDS = 400
DIM, K = 96, 16


def matrices(options: dict[str, Any], k: int = K, dim: int = DIM) -> Tensor:
    """Projections with different seeds, ``[SEEDS, k, dim]``."""
    return _matrices(tuple(options.items()), k, dim)


@lru_cache
def _matrices(options: tuple[tuple[str, Any], ...], k: int, dim: int) -> Tensor:
    unit = torch.eye(k, dtype=torch.float64)
    return torch.stack([make(dim, k, dict(options), seed).back(unit) for seed in range(SEEDS)])


@KINDS
@pytest.mark.parametrize("k", [12, 16])
def test_the_mean_over_seeds_is_the_identity(options: dict[str, Any], k: int) -> None:
    P = matrices(options, k, 40)
    mean = (P.mT @ P).mean(0) - torch.eye(40, dtype=torch.float64)
    largest = mean.abs().max().item()  # of 820 means of numbers of variance at most 2 / k: 6 deviations are never passed
    assert largest < 6 * math.sqrt(2 / k / SEEDS)
    if options["kind"] != "gaussian":
        assert mean.diagonal().abs().max() < 1e-12


@KINDS
@pytest.mark.parametrize("k", [12, 16])
def test_squared_norms_are_kept_on_average(options: dict[str, Any], k: int, sweep: Callable[..., list[int]]) -> None:
    """Of 20,000 seeds in a full run, where six deviations of the mean are below 2 % of it."""
    vectors = drawing(torch.float64, 3)(3, 100)
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    seeds = sweep(range(10**6, 10**6 + 20_000), 300)
    norms = torch.stack([make(100, k, options, seed).times(vectors).square().sum(1) for seed in seeds])
    bound = 2 / k
    if k % options.get("nonzeros", 1):
        bound *= k / (options["nonzeros"] * (k // options["nonzeros"]))
    assert (norms.mean(0) - 1).abs().max() < 6 * math.sqrt(bound / len(seeds))


@KINDS
@pytest.mark.parametrize("shape", ["normal", "one", "two", "flat", "first block", "decaying"])
def test_norms_have_the_variance_of_the_theory(options: dict[str, Any], shape: str) -> None:
    v, T = torch.zeros(DIM, dtype=torch.float64), drawing(torch.float64, 3)
    if shape in ("one", "two"):
        v[: 17 if shape == "two" else 1 : 16] = 1.0
    else:
        v = {"normal": T(DIM), "flat": torch.ones(DIM).double(), "decaying": 0.9 ** torch.arange(DIM).double(),
             "first block": torch.cat([T(K), torch.zeros(DIM - K).double()])}[shape]  # fmt: skip
    v = v / v.norm()
    errors = (matrices(options) @ v).square().sum(1) - 1
    bound = 2 / K * (1 if options["kind"] == "gaussian" else 1 - v.pow(4).sum().item())
    if 16 % options.get("nonzeros", 1):
        bound *= K / (options["nonzeros"] * (K // options["nonzeros"]))
    assert errors.mean().abs() < 5 * math.sqrt(bound / SEEDS) + 1e-12
    assert errors.square().mean() < bound * (1 + 5 * math.sqrt(20 / SEEDS)) + 1e-24  # kurtosis of the error below 21
    if options["kind"] == "gaussian":
        assert errors.square().mean() > bound / 2


@KINDS
def test_distances_of_many_points_are_kept(options: dict[str, Any]) -> None:
    points, k = drawing(torch.float64, 3)(60, 3000), 512
    P = make(3000, k, options)
    distances, projected = (torch.cdist(x, x).square() for x in (points, P @ points))
    pairs = torch.ones(60, 60).triu(1).bool()
    errors = (projected / distances - 1)[pairs].abs()
    assert errors.max() < math.sqrt(8 * math.log(60) / k)  # Johnson and Lindenstrauss, as Dasgupta and Gupta (2003) bound it
    assert errors.square().mean() < 2 * 2 / k


@KINDS
def test_inner_products_are_kept(options: dict[str, Any]) -> None:
    x, y = drawing(torch.float64, 3)(2, DIM)
    y = y + 0.5 * x
    P = matrices(options)
    found = ((P @ x) * (P @ y)).sum(1)
    variance = (x.square().sum() * y.square().sum() + (x @ y) ** 2).item() / K * 1.1
    assert (found.mean() - x @ y).abs() < 5 * math.sqrt(variance / SEEDS)
    assert found.var() < variance * (1 + 5 * math.sqrt(20 / SEEDS))


def test_kinds_and_seeds_are_independent() -> None:
    kinds = [({"kind": kind}, seed) for kind in ("gaussian", "rademacher", "fjlt") for seed in (1, 2)]
    rows = [hesse.dense(make(900, 4, *kind))[0] for kind in kinds]
    units = torch.stack([row / row.norm() for row in rows])
    assert (units @ units.T - torch.eye(6)).abs().max() < 6 / math.sqrt(900)


def test_gaussian_numbers_are_normal() -> None:
    numbers = hesse.dense(make(5000, 40, {"kind": "gaussian"})).flatten() * 40**0.5
    count = len(numbers)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs(numbers.pow(power).mean().item() - moment) < 5 * math.sqrt(variance / count) + 2e-3 * moment
    order = numbers.sort().values
    levels = torch.special.ndtr(order) - (torch.arange(count) + 0.5) / count
    assert levels.abs().max() < 2 / math.sqrt(count)  # Kolmogorov and Smirnov
