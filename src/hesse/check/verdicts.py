"""When two derivatives agree: error bars, tolerances and kinks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from hesse.check.check_report import Verdict
from hesse.check.differences import EPSILON, Difference, best_difference, ridders

_BARS = 3.0  # error bars of the differences that are allowed
_CLEAR = 30.0  # so many error bars off, without a kink, needs no second look
_FINEST = 200.0  # units in the last place, over the step: no difference is finer
_ROUNDINGS = 32.0  # units in the last place that one evaluation may be off
_KINK_STEPS = (1e-5, 1e-3)  # relative steps at which kinks are looked for


@dataclass(frozen=True)
class Precision:
    """What a unit of rounding allows.

    Attributes:
        epsilon: the relative unit of rounding of the shortest type on the way.
        asked: a relative disagreement that the user takes for agreement.
    """

    epsilon: float = EPSILON
    asked: float = 0.0

    @property
    def steps(self) -> tuple[float, ...]:
        """First steps of differences, relative, in the order in which they are tried."""
        return (1e-3, 1e-5, 1e-6, 2e-2) if self.epsilon < 1e-12 else (5e-2, 1e-2, 3e-1, 1e-3)

    @property
    def tolerance(self) -> float:
        """Relative disagreement that rounding of the derivative under check may cause."""
        return max(1e-8, 1e3 * self.epsilon, self.asked)

    @property
    def fine(self) -> float:
        """Relative error bar that settles the matter where both sides agree."""
        return max(1e-7, 1e4 * self.epsilon)

    @property
    def useless(self) -> float:
        """Relative error bar beyond which differences decide nothing."""
        return min(max(1e-2, 1e6 * self.epsilon), 0.5)

    @property
    def floor(self) -> float:
        """A derivative this small beside the value itself is rounding."""
        return max(1e-8, 1e5 * self.epsilon)

    def judge(self, value: float, found: Difference, scale: float, rounding: float = 0.0) -> Verdict:
        """Whether a derivative, itself rounded, agrees with the differences, where derivatives have a certain size."""
        if not abs(value - found.value) <= _BARS * found.error + self.tolerance * scale + rounding:  # also what is not a number
            return "wrong"
        return "ok" if found.error + rounding <= self.useless * scale else "undecided"


@dataclass(frozen=True)
class Line:
    """A function along a line, and the derivative under check.

    Attributes:
        phi: ``t -> value``, less the value at 0.
        value: the slope under check.
        slope: the typical slope.
        size: of the numbers whose rounding disturbs `phi`.
        gap: ``t -> `` how far the slopes to both sides differ, over t, element by element where there are many.
        rounding: of `value` itself.
    """

    phi: Callable[[float], float]
    value: float
    slope: float
    size: float
    gap: Callable[[float], float]
    rounding: float = 0.0

    def scale(self, precision: Precision, found: Difference | None = None) -> float:
        """The size of a slope that disagreements are measured against."""
        seen = abs(found.value) if found is not None and math.isfinite(found.value) else 0.0
        return max(self.slope, self.size * precision.floor, seen, 1e-30)

    def verdict(self, precision: Precision, found: Difference) -> Verdict:
        """Whether the derivative agrees with what differences gave."""
        return precision.judge(self.value, found, self.scale(precision, found), self.rounding)


def difference(line: Line, precision: Precision, *, thorough: bool = True) -> tuple[Difference, bool]:
    """The slope at 0 by differences, and whether 0 is a kink, which it then says nothing about.

    Args:
        line: the function and the slope under check; the search is content as soon as they agree, or clearly do not.
        precision: of the function.
        thorough: whether to go on where the first two steps leave a doubt.

    Cost: usually 4 evaluations of the function; up to 60 where it is rough.
    """

    def enough(found: Difference) -> bool:
        least = max(precision.fine * line.scale(precision, found), _FINEST * precision.epsilon * line.size / precision.steps[0])
        return found.error <= least and line.verdict(precision, found) == "ok"

    found = _two_steps(line, precision)
    if not thorough or enough(found) or _is_clearly_wrong(line, found, precision):
        return found, False
    if math.isinf(found.error) and _is_rough(line, min(_KINK_STEPS), precision):
        return found, True
    found = ridders(line.phi, precision.steps[0], precision.epsilon, line.size)
    if enough(found) or _is_clearly_wrong(line, found, precision):
        return found, False
    if precision.epsilon > 1e-12:  # the first steps are so long that they cross kinks of functions with many pieces
        short = _two_steps(line, precision, precision.steps[-1])
        if short.error <= precision.useless * line.scale(precision, short) / 3 and line.verdict(precision, short) == "ok":
            return short, False
    if any(_is_rough(line, step, precision) for step in _KINK_STEPS if precision.epsilon < 1e-12 or step > 1e-4):
        return found, True
    return best_difference(line.phi, precision.steps, enough, precision.epsilon, line.size), False


def plain_difference(line: Line, precision: Precision) -> tuple[Difference, bool]:
    """The slope at 0 by two central differences, and whether it may be none: a kink, or a value that is not finite.

    Cost: 4 evaluations.
    """
    found = _two_steps(line, precision)
    wide, narrow = line.gap(precision.steps[0]), line.gap(precision.steps[0] / 2)
    return found, not math.isfinite(found.error) or (narrow > 0.7 * wide and narrow > 1e-3 * abs(found.value))


def _two_steps(line: Line, precision: Precision, step: float = 0.0) -> Difference:
    """Richardson's extrapolation of two central differences, with the correction for an error bar."""
    phi, step = line.phi, step or precision.steps[0]
    wide, high, low = (phi(step) - phi(-step)) / (2 * step), phi(step / 2), phi(-step / 2)
    narrow = (high - low) / step
    value = (4 * narrow - wide) / 3
    error = abs(value - narrow) + _ROUNDINGS * precision.epsilon * max(abs(high), abs(low), line.size) / step
    return Difference(value, error if math.isfinite(error) else math.inf, step)


def _is_clearly_wrong(line: Line, found: Difference, precision: Precision) -> bool:
    """Whether two steps contradict the slope under check by far, on a line that is smooth as far as they reach."""
    scale = line.scale(precision, found)
    if not (found.error <= 10 * precision.fine * scale and math.isfinite(line.value)):
        return False
    if abs(line.value - found.value) <= _CLEAR * found.error + 3 * (line.rounding + precision.tolerance * scale):
        return False
    step = precision.steps[0]
    wide, narrow = line.gap(step), line.gap(step / 2)
    return narrow <= 0.7 * wide or narrow <= 1e-3 * abs(line.value - found.value)


def _is_rough(line: Line, step: float, precision: Precision) -> bool:
    """Whether 0 is a kink, a jump, or a place where the function is infinite.

    Across a jump the difference of the values to the left and to the right stays as the step shrinks.
    """
    if not all(math.isfinite(line.phi(h)) for h in (step, -step)):
        return True
    wide, narrow = (abs(line.phi(h) - line.phi(-h)) for h in (step, step / 8))
    rounding = 1e2 * precision.epsilon * max(abs(line.phi(step)), line.size)
    if narrow > rounding and narrow > 0.5 * wide:
        return True
    wide, narrow = line.gap(step), line.gap(step / 8)
    return narrow > 4 * _ROUNDINGS * precision.epsilon * line.size / (step / 8) and narrow > 0.5 * wide
