"""When two derivatives agree: error bars, tolerances and kinks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from hesse.check.check_report import Verdict
from hesse.check.differences import EPSILON, Difference, best_difference, most_trusted, ridders
from hesse.check.functions.subject import BudgetSpent

_BARS = 3.0  # error bars of the differences that are allowed
_BEND = 1e-4  # beside slopes near by, such a slope is zero
_CLEAR = 30.0  # so many error bars off, without a kink, needs no second look
_FINEST = 200.0  # units in the last place, over the step: no difference is finer
_ROUNDINGS = 32.0  # units in the last place that one evaluation may be off
_NEAR, _FAR = 1e-3 / 64, 1e-3  # relative steps at which kinks are looked for
_BETWEEN = 1e-3 / 8
_NOISE = 1e3  # such multiples of the unit of rounding are a few percent of what is looked for


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
    def is_exact(self) -> bool:
        """Whether the function is computed in float64 all the way."""
        return self.epsilon < 1e-12

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
    def rough(self) -> float:
        """Relative error bar of short steps that settles the matter where longer ones cross kinks, and both sides agree."""
        return 1e-4 if self.epsilon < 1e-12 else self.useless / 3

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
        """The size of a slope that disagreements are measured against; where it is zero, the slopes near by count a little."""
        seen = abs(found.value) if found is not None and math.isfinite(found.value) else 0.0
        step = precision.steps[0]
        chord = max(abs(self.phi(step)), abs(self.phi(-step))) / step
        near = _BEND * chord if math.isfinite(chord) else 0.0
        return max(self.slope, self.size * precision.floor, seen, near, 1e-30)

    def verdict(self, precision: Precision, found: Difference) -> Verdict:
        """Whether the derivative agrees with what differences gave."""
        return precision.judge(self.value, found, self.scale(precision, found), self.rounding)


def difference(line: Line, precision: Precision, *, thorough: bool = True) -> tuple[Difference, bool]:
    """The slope at 0 by differences, and whether 0 is a kink, which it then says nothing about.

    Where the evaluations that are allowed run out, the surest of what was found until then.

    Args:
        line: the function and the slope under check; the search is content as soon as they agree, or clearly do not.
        precision: of the function.
        thorough: whether to go on where the first two steps leave a doubt.

    Returns:
        The slope with its error bar, and whether 0 is a kink.

    Raises:
        BudgetSpent: not even two steps were allowed.

    Cost: usually 4 evaluations of the function; up to 60 where it is rough.
    """
    if not thorough:
        return _two_steps(line, precision.steps[0], precision), False
    tried: list[Difference] = []
    try:
        return _searched(line, precision, tried)
    except BudgetSpent:
        if not tried:
            raise
        return _surest(line, precision, tried)


def _searched(line: Line, precision: Precision, tried: list[Difference]) -> tuple[Difference, bool]:
    def enough(found: Difference) -> bool:
        least = max(precision.fine * line.scale(precision, found), _FINEST * precision.epsilon * line.size / precision.steps[0])
        return found.error <= least and line.verdict(precision, found) == "ok"

    def settles(found: Difference) -> bool:
        least = max(precision.rough * line.scale(precision, found), _FINEST * precision.epsilon * line.size / found.step)
        return found.error <= least and line.verdict(precision, found) == "ok"

    tried.append(found := _two_steps(line, precision.steps[0], precision))
    if enough(found) or _is_clearly_wrong(line, found, precision):
        return found, False
    exact = precision.epsilon < 1e-12
    if exact:  # within the smooth piece around the point, unless that is a kink itself
        tried.append(found := _two_steps(line, _NEAR, precision))
        if settles(found) or _is_clearly_wrong(line, found, precision):
            return found, False
        if _is_rough(line, _NEAR, precision):
            return found, True
        if line.verdict(precision, found) == "undecided":  # lost in rounding
            tried.append(found := _two_steps(line, _BETWEEN, precision))
            if settles(found):
                return found, False
    elif math.isinf(found.error) and _is_rough(line, _NEAR, precision):
        return found, True
    tried.append(found := ridders(line.phi, precision.steps[0], precision.epsilon, line.size))
    if enough(found) or _is_clearly_wrong(line, found, precision):
        return found, False
    if not exact:  # the first steps are so long that they cross kinks of functions with many pieces
        tried.append(short := _two_steps(line, precision.steps[-1], precision))
        if settles(short):
            return short, False
    if _is_rough(line, _FAR, precision):
        return found, True
    return best_difference(line.phi, precision.steps, enough, precision.epsilon, line.size), False


def _surest(line: Line, precision: Precision, tried: list[Difference]) -> tuple[Difference, bool]:
    """Of what was tried the surest; where it contradicts the slope under check and shorter steps do not, one of those."""
    best = most_trusted(tried)
    if line.verdict(precision, best) != "wrong":
        return best, False
    shorter = [found for found in tried if found.step < best.step and line.verdict(precision, found) != "wrong"]
    if shorter:
        return min(shorter, key=lambda found: found.error), False
    try:
        return best, not _is_smooth(line, best.step, abs(line.value - best.value), precision)
    except BudgetSpent:
        return best, True


def is_confirmed(line: Line, precision: Precision, expected: float) -> bool:
    """Whether much smaller steps give the same slope too, as they do unless the function is rough, or oscillates fast.

    Args:
        line: the function and the slope under check, which is another one.
        precision: of the function.
        expected: the slope that was found.

    Cost: 4 evaluations.
    """
    phi, defect = line.phi, abs(line.value - expected)
    large = precision.steps[0] * (1e-3 if precision.epsilon < 1e-12 else 0.2)
    least = _NOISE * precision.epsilon * line.size / defect  # where rounding is some percent
    steps = (large, min(large, max(least, 1e4 * precision.epsilon)))
    return all(abs((phi(h) - phi(-h)) / (2 * h) - expected) <= 0.2 * defect for h in steps)


def kink_step(precision: Precision) -> float:
    """The step at which `difference` recognizes kinks."""
    return _NEAR if precision.epsilon < 1e-12 else _FAR


def plain_difference(line: Line, precision: Precision) -> tuple[Difference, bool]:
    """The slope at 0 by two central differences, and whether it may be none: a kink, or a value that is not finite.

    Cost: 4 evaluations.
    """
    found = _two_steps(line, precision.steps[0], precision)
    wide, narrow = line.gap(precision.steps[0]), line.gap(precision.steps[0] / 2)
    return found, not math.isfinite(found.error) or (narrow > 0.7 * wide and narrow > 1e-3 * abs(found.value))


def _two_steps(line: Line, step: float, precision: Precision) -> Difference:
    """Richardson's extrapolation of two central differences, with the correction for an error bar."""
    phi = line.phi
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
    step = _NEAR if found.step == _NEAR else precision.steps[0]  # of ridders, the longest one
    return _is_smooth(line, step, abs(line.value - found.value), precision)


def _is_smooth(line: Line, step: float, defect: float, precision: Precision) -> bool:
    """Whether neither a kink nor a jump within a step explains a disagreement.

    Halving the step halves how far the slopes to both sides differ where there is no kink, and the difference of the values
    where there is no jump.
    """
    wide, narrow = (abs(line.phi(h) - line.phi(-h)) for h in (step, step / 2))
    if narrow > 0.9 * wide and narrow > 1e2 * precision.epsilon * max(abs(line.phi(step)), line.size):
        return False
    wide, narrow = line.gap(step), line.gap(step / 2)
    return narrow <= 0.7 * wide or narrow <= 1e-3 * defect


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
