"""Ridders' differences against closed forms, and what they say of kinks."""

from __future__ import annotations

import math

import pytest

from hesse.check.differences import best_difference, has_kink, ridders

SMOOTH = {
    "sine": (lambda t: math.sin(3 * t + 0.4), 3 * math.cos(0.4)),
    "exponential": (lambda t: math.exp(-2 * t + 1), -2 * math.e),
    "rational": (lambda t: 1 / (2 + t) ** 2, -0.25),
    "large offset": (lambda t: 1e6 + math.tanh(t), 1.0),
}


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("step", [0.1, 1e-3])
def test_ridders_is_within_its_error_bar(name: str, step: float) -> None:
    function, exact = SMOOTH[name]
    found = ridders(function, step)
    assert abs(found.value - exact) <= found.error
    assert found.error <= 1e-7 * max(abs(function(0.0)), 1)


def test_ridders_beats_plain_differences() -> None:
    step = 0.1
    plain = (math.exp(step) - math.exp(-step)) / (2 * step)
    assert abs(ridders(math.exp, step).value - 1) < 1e-6 * abs(plain - 1)


def test_ridders_counts_few_evaluations() -> None:
    calls = []
    ridders(lambda t: calls.append(t) or math.sin(t), 0.1)
    assert 4 <= len(calls) <= 14


def test_ridders_skips_steps_where_the_function_is_not_finite() -> None:
    found = ridders(lambda t: math.log(0.02 + t) if t > -0.02 else math.nan, 0.1)
    assert abs(found.value - 50) <= found.error < 1


def test_ridders_without_any_finite_value_has_an_infinite_error() -> None:
    assert math.isinf(ridders(lambda t: math.nan, 0.1).error)


def test_best_difference_finds_the_smooth_piece_between_kinks() -> None:
    def crooked(t: float) -> float:  # slope 2 within 1e-4 of zero
        return 2 * t + max(t - 1e-4, 0) * 5 - max(-t - 3e-4, 0) * 7

    found = best_difference(crooked, (2e-2, 1e-3, 3e-5, 1e-6), lambda d: d.error < 1e-9)
    assert abs(found.value - 2) <= found.error < 1e-6


def test_best_difference_stops_when_it_has_enough() -> None:
    calls = []
    best_difference(lambda t: calls.append(t) or math.sin(t), (1e-2, 1e-3, 1e-4), lambda d: d.error < 1e-6)
    assert len(calls) <= 14


def test_a_lone_value_counts_with_its_distance_to_the_others() -> None:
    slopes = {1e-2: 1.0, 1e-4: 3.0, 1e-6: 3.1}  # exactly linear within a factor of 100 below each step

    def broken(t: float) -> float:
        return next(s * t for h, s in sorted(slopes.items()) if abs(t) <= h)

    found = best_difference(broken, (1e-2, 1e-4, 1e-6), lambda d: False)
    assert found.value == pytest.approx(3.0)
    assert 0.09 < found.error < 0.11


@pytest.mark.parametrize(
    ("function", "kink"),
    [
        (abs, True),
        (lambda t: 1 + max(t, 0) - 3 * max(-t, 0), True),
        (lambda t: max(t - 1e-7, 0), True),
        (lambda t: max(t - 1.0, 0) + t, False),
        (lambda t: 5 + t + 40 * t * t, False),
        (lambda t: 3 * t, False),
    ],
)
def test_has_kink(function, kink: bool) -> None:
    assert has_kink(function, 1e-4) is kink
