"""Inverses kept by the values of their weight."""

from __future__ import annotations

import pickle

import pytest
import torch

from hesse.convolutions import cached
from hesse.convolutions.cached import Inverses
from hesse.convolutions.inverse_norm import condition_of
from hesse.core.errors import NonFiniteError
from tests.convolutions.dense_oracle import CASES, Case

CASE = CASES[0]
GEOMETRY = CASE.operator(CASE.weight()).geometry


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each inverse that is made."""
    calls: list[int] = []
    make = cached.ladder.inverse

    def counting(*args, **options):
        calls.append(1)
        return make(*args, **options)

    monkeypatch.setattr(cached.ladder, "inverse", counting)
    return calls


def test_equal_values_share_an_inverse_and_others_do_not(made: list[int]) -> None:
    inverses, weight = Inverses(GEOMETRY), CASE.weight()
    first = inverses.of(weight)
    assert inverses.of(weight.clone().requires_grad_()) is first
    assert len(made) == 1
    weight.data[0, 0, 0, 0] += 1e-15
    second = inverses.of(weight)
    assert second is not first and len(made) == 2
    assert torch.equal(second.convolution.weight, weight)
    weight.zero_()
    assert bool(second.convolution.weight.any())  # its own copy
    assert inverses.of(weight.float()) is not inverses.of(weight)


def test_as_many_are_kept_as_are_expected(made: list[int]) -> None:
    weights = [CASE.weight(seed) for seed in range(4)]
    inverses = Inverses(GEOMETRY)
    for _ in range(2):
        for weight in weights:
            inverses.of(weight)
    assert len(made) == 8
    made.clear()
    inverses = Inverses(GEOMETRY)
    inverses.expect(4)
    for _ in range(2):
        for weight in weights:
            inverses.of(weight)
    assert len(made) == 4
    inverses.expect(1000)
    for seed in range(20):
        inverses.of(CASE.weight(seed))
    made.clear()
    for seed in range(4, 20):
        inverses.of(CASE.weight(seed))
    assert not made
    inverses.of(CASE.weight(3))
    assert len(made) == 1


def test_a_rank_that_was_deficient_once_is_remembered() -> None:
    inverses, weight = Inverses(GEOMETRY, rtol=1e-10), CASE.weight()
    inverses.of(weight)
    assert inverses.full_rank and inverses.gap == float("inf")
    singular = weight.clone()
    singular[1] = singular[0]
    inverses.of(singular)
    assert not inverses.full_rank
    inverses.of(weight)
    assert not inverses.full_rank


def test_the_smallest_gap_is_remembered() -> None:
    case = Case("decaying", (1, 1, 3), (1, 12), {"padding": 1})
    weight = torch.tensor([[[0.3, 1.0, 0.5]]], dtype=torch.float64)
    values = torch.linalg.svdvals(case.matrix(weight))
    rtol = float((values[4] + values[5]) / 2 / values[0])
    inverses = Inverses(case.operator(weight).geometry, rtol=rtol)
    inverses.of(weight)
    assert abs(inverses.gap - float(values[4] / values[5])) <= 1e-10
    inverses.of(torch.tensor([[[0.0, 1.0, 0.0]]], dtype=torch.float64))
    assert abs(inverses.gap - float(values[4] / values[5])) <= 1e-10


def test_conditions_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    inverses, weight = Inverses(GEOMETRY), CASE.weight()
    condition = condition_of(inverses.of(weight))
    assert abs(condition - float(torch.linalg.cond(CASE.matrix(weight)))) <= 1e-8 * condition
    monkeypatch.setattr(type(inverses.of(weight)), "condition", lambda _: pytest.fail("found again"))
    assert condition_of(inverses.of(weight)) == condition


def test_pickles_hold_no_inverses() -> None:
    inverses = Inverses(GEOMETRY, rtol=1e-7)
    inverses.of(CASE.weight())
    again = pickle.loads(pickle.dumps(inverses))
    assert (again.rtol, again.geometry) == (1e-7, GEOMETRY)
    assert torch.equal(again.of(CASE.weight()).convolution.weight, CASE.weight())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_have_to_be_finite(value: float) -> None:
    weight = CASE.weight()
    weight[0, 1, 2, 0] = value
    with pytest.raises(NonFiniteError):
        Inverses(GEOMETRY).of(weight)
