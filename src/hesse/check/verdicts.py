"""When two derivatives agree: error bars, tolerances and kinks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from hesse.check.check_report import Verdict
from hesse.check.differences import EPSILON, Difference, best_difference, has_kink, ridders

_BARS = 3.0  # error bars of the differences that are allowed
_ROUNDINGS = 32.0  # units in the last place that one evaluation may be off
_KINK_STEPS = (1e-5, 1e-3)  # relative steps at which kinks are looked for


@dataclass(frozen=True)
class Precision:
    """What a unit of rounding allows.

    Attributes:
        epsilon: the relative unit of rounding of the shortest type on the way.
    """

    epsilon: float = EPSILON

    @property
    def steps(self) -> tuple[float, ...]:
        """First steps of differences, relative, in the order in which they are tried."""
        return (1e-3, 1e-5, 1e-6, 2e-2) if self.epsilon < 1e-12 else (5e-2, 1e-2, 3e-1, 1e-3)

    @property
    def tolerance(self) -> float:
        """Relative disagreement that rounding of the derivative under check may cause."""
        return max(1e-7, 1e3 * self.epsilon)

    @property
    def fine(self) -> float:
        """Relative error bar that settles the matter where both sides agree."""
        return max(1e-6, 1e4 * self.epsilon)

    @property
    def useless(self) -> float:
        """Relative error bar beyond which differences decide nothing."""
        return max(1e-2, 1e6 * self.epsilon)

    @property
    def floor(self) -> float:
        """A derivative this small beside the value itself is rounding."""
        return max(1e-6, 1e5 * self.epsilon)

    def judge(self, value: float, found: Difference, scale: float) -> Verdict:
        """Whether a derivative agrees with the differences, where derivatives have a certain size."""
        if not abs(value - found.value) <= _BARS * found.error + self.tolerance * scale:  # catches what is not a number
            return "wrong"
        return "ok" if found.error <= self.useless * scale else "undecided"


@dataclass(frozen=True)
class Line:
    """A function along a line.

    Attributes:
        phi: ``t -> value``.
        slope: the typical slope.
        value: at 0; slopes that are negligible beside it are rounding.
    """

    phi: Callable[[float], float]
    slope: float
    value: float

    def scale(self, precision: Precision) -> float:
        """The size of a slope that disagreements are measured against."""
        return max(self.slope, abs(self.value) * precision.floor, 1e-30)


def difference(line: Line, value: float, precision: Precision) -> tuple[Difference, float, bool]:
    """The slope at 0 by differences, its scale, and whether 0 is a kink, which it then says nothing about.

    Args:
        line: the function and the size of its slope.
        value: the slope under check, with which the search is content as soon as it agrees.
        precision: of the function.

    Cost: usually 4 evaluations of the function; up to 70 where the slopes disagree.
    """
    here = line.scale(precision)

    def scale(found: Difference) -> float:
        return max(here, abs(found.value) if math.isfinite(found.value) else 0.0)

    def enough(found: Difference) -> bool:
        least = max(precision.fine * scale(found), 1e-4 * precision.floor * abs(line.value))
        return found.error <= least and precision.judge(value, found, scale(found)) == "ok"

    for start in (_two_steps, ridders):
        found = start(line.phi, precision.steps[0], precision.epsilon)
        if enough(found):
            return found, scale(found), False
    if any(_is_rough(line, step, precision) for step in _KINK_STEPS if precision.epsilon < 1e-12 or step > 1e-4):
        return found, scale(found), True
    found = best_difference(line.phi, precision.steps, enough, precision.epsilon)
    return found, scale(found), False


def _two_steps(phi: Callable[[float], float], step: float, epsilon: float) -> Difference:
    """Richardson's extrapolation of two central differences, with the correction for an error bar."""
    wide, high, low = (phi(step) - phi(-step)) / (2 * step), phi(step / 2), phi(-step / 2)
    narrow = (high - low) / step
    value = (4 * narrow - wide) / 3
    error = abs(value - narrow) + _ROUNDINGS * epsilon * max(abs(high), abs(low)) / step
    return Difference(value, error if math.isfinite(error) else math.inf, step)


def _is_rough(line: Line, step: float, precision: Precision) -> bool:
    """Whether 0 is a kink, a jump, or a place where the function is infinite.

    Across a jump the difference of the values to the left and to the right stays as the step shrinks.
    """
    if not math.isfinite(line.phi(0.0)):
        return True
    wide, narrow = (abs(line.phi(h) - line.phi(-h)) for h in (step, step / 8))
    rounding = 1e2 * precision.epsilon * max(abs(line.phi(step)), abs(line.value))
    return (narrow > rounding and narrow > 0.5 * wide) or has_kink(line.phi, step, precision.epsilon)
