"""The search for a slope with an error bar: kinks near by, few evaluations, slopes that are zero, jumps."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from hesse.check.functions.subject import BudgetSpent
from hesse.check.verdicts import Line, Precision, difference, is_confirmed

EXACT = Precision()


def line_of(phi: Callable[[float], float], value: float, *, size: float = 1.0, limit: int = 10**6) -> tuple[Line, list[float]]:
    """A line whose function may be computed so often, at each point once; and the points where it was."""
    known: dict[float, float] = {}

    def counted(t: float) -> float:
        if t not in known:
            if len(known) >= limit:
                raise BudgetSpent
            known[t] = phi(t)
        return known[t]

    asked: list[float] = []

    def traced(t: float) -> float:
        found = counted(t)
        if t not in asked:
            asked.append(t)
        return found

    return Line(traced, value, abs(value), size, lambda t: abs(traced(t) + traced(-t)) / t), asked


def hinges(t: float) -> float:
    """Slope 2 within 1e-4 of zero."""
    return 2 * t + 5 * max(t - 1e-4, 0) - 7 * max(-t - 3e-4, 0)


def test_smooth_functions_cost_four_evaluations() -> None:
    line, asked = line_of(math.sin, 1.0)
    found, kink = difference(line, EXACT)
    assert (len(asked), kink) == (4, False)
    assert line.verdict(EXACT, found) == "ok"


def test_kinks_near_by_cost_eight() -> None:
    line, asked = line_of(hinges, 2.0)
    found, kink = difference(line, EXACT)
    assert (len(asked), kink) == (8, False)
    assert line.verdict(EXACT, found) == "ok"


def test_a_wrong_slope_between_kinks_near_by_is_found() -> None:
    line, asked = line_of(hinges, 2.01)
    found, kink = difference(line, EXACT)
    assert (line.verdict(EXACT, found), kink) == ("wrong", False)
    assert len(asked) <= 10
    assert abs(found.value - 2) <= found.error < 1e-8


def test_a_kink_at_the_point_costs_ten() -> None:
    line, asked = line_of(lambda t: abs(t) + 0.3 * t, 0.8)
    assert difference(line, EXACT)[1]
    assert len(asked) <= 10


@pytest.mark.parametrize("limit", [4, 6, 8, 9, 12])
def test_what_is_known_counts_where_evaluations_run_out(limit: int) -> None:
    right, bent = line_of(hinges, 2.0, limit=limit)[0], line_of(lambda t: abs(t) + 0.3 * t, 0.8, limit=limit)[0]
    for line in (right, bent):
        found, kink = difference(line, EXACT)
        assert kink or line.verdict(EXACT, found) != "wrong"
    assert limit < 8 or right.verdict(EXACT, difference(right, EXACT)[0]) == "ok"


def test_two_steps_are_the_least() -> None:
    with pytest.raises(BudgetSpent):
        difference(line_of(math.sin, 1.0, limit=3)[0], EXACT)


def test_jumps_of_odd_functions_are_no_slopes() -> None:
    """As of x / max(|x|, eps) at zero: the slopes to both sides are equal at every step."""
    line = line_of(lambda t: max(-1.0, min(1.0, t * 1e12)), 1e12)[0]
    assert difference(line, EXACT)[1]


def test_a_slope_of_zero_where_the_value_is_zero() -> None:
    line = line_of(lambda t: 3 * t * t + 5 * t**3, 0.0, size=0.0)[0]
    found, kink = difference(line, EXACT)
    assert (line.verdict(EXACT, found), kink) == ("ok", False)
    wrong = line_of(lambda t: 3 * t * t + 5 * t**3, 1e-7, size=0.0)[0]
    assert wrong.verdict(EXACT, difference(wrong, EXACT)[0]) == "wrong"


def test_smaller_steps_confirm_a_slope() -> None:
    assert is_confirmed(line_of(math.sin, 2.0)[0], EXACT, 1.0)
    assert not is_confirmed(line_of(hinges, 2.0)[0], EXACT, 4.0)
