"""The derivative of a function of one number by central differences, with an error bar.

Source: C. J. F. Ridders, Accurate computation of F'(x) and F'(x) F''(x), Advances in Engineering Software 4 (1982);
the stopping rule is that of Numerical Recipes, `dfridr`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

EPSILON = 2.0**-52  # of float64
_ROUNDINGS = 32.0  # how many units in the last place one evaluation of a summed loss may be off
_SHRINK = 2.0
_ROWS = 7


@dataclass(frozen=True)
class Difference:
    """A derivative by differences.

    Attributes:
        value: the derivative.
        error: an error bar on it: disagreement within the extrapolation table, plus rounding.
        step: the step of the table row that the value comes from.
    """

    value: float
    error: float
    step: float


def ridders(phi: Callable[[float], float], step: float, epsilon: float = EPSILON, size: float = 0.0) -> Difference:
    """The derivative of `phi` at 0, by Ridders' extrapolation of central differences from `step` downwards.

    Args:
        phi: a function of one number, evaluated in float64.
        step: the first and largest step; at most six halvings follow.
        epsilon: relative unit of rounding of `phi`, larger where it computes partly in a shorter type.
        size: of the numbers that are rounded, where that is more than the size of `phi` (which may be a difference of them).

    Returns:
        The best entry of the table. Its error is infinite where `phi` was not finite.

    Cost: 4 to 14 evaluations of `phi`.
    """
    best = Difference(math.nan, math.inf, step)
    above: list[float] = []
    for row in range(_ROWS):
        h = step / _SHRINK**row
        high, low = phi(h), phi(-h)
        if not (math.isfinite(high) and math.isfinite(low)):
            above = []
            continue
        rounding = _ROUNDINGS * epsilon * max(abs(high), abs(low), size) / h
        current = [(high - low) / (2 * h)]
        for order in range(1, len(above) + 1):
            factor = _SHRINK ** (2 * order)
            current.append((factor * current[-1] - above[order - 1]) / (factor - 1))
            spread = max(abs(current[-1] - current[-2]), abs(current[-1] - above[order - 1]))
            if spread + rounding < best.error:
                best = Difference(current[-1], spread + rounding, h)
        if above and abs(current[-1] - above[-1]) >= 2 * best.error:
            break
        above = current
    return best


def best_difference(
    phi: Callable[[float], float],
    steps: tuple[float, ...],
    enough: Callable[[Difference], bool],
    epsilon: float = EPSILON,
    size: float = 0.0,
) -> Difference:
    """`ridders` from several first steps; a value counts with its distance to the nearest other one.

    Large steps suit smooth functions; across the kinks of a piecewise smooth one only small steps converge, and a
    table may agree with itself by chance, which the other steps then contradict.

    Args:
        phi: a function of one number, evaluated in float64.
        steps: first steps, the one to try first in front.
        enough: whether a step's result will do, so that no further step is tried.
        epsilon, size: as for `ridders`.

    Cost: 4 to 14 evaluations of `phi` for each step tried.
    """
    tried: list[Difference] = []
    for step in steps:
        tried.append(ridders(phi, step, epsilon, size))
        if enough(tried[-1]):
            return tried[-1]

    return most_trusted(tried)


def most_trusted(tried: Sequence[Difference]) -> Difference:
    """Of several differences the one that is surest, by its own error bar and its distance to the nearest other one.

    Args:
        tried: at least one.
    """

    def doubt(chosen: Difference) -> float:
        others = [other.error + abs(other.value - chosen.value) for other in tried if other is not chosen]
        return chosen.error + min((o for o in others if math.isfinite(o)), default=0.0)

    usable = [difference for difference in tried if math.isfinite(difference.error)]
    best = min(usable, key=doubt, default=tried[0])
    return Difference(best.value, doubt(best), best.step)


def has_kink(phi: Callable[[float], float], step: float, epsilon: float = EPSILON, size: float = 0.0) -> bool:
    """Whether the slopes of `phi` to the left and to the right of 0 differ: a kink closer than the step.

    The gap between the one-sided slopes shrinks with the step where `phi` is smooth, and stays where it is not.

    Cost: 5 evaluations of `phi`.
    """
    here = phi(0.0)

    def gap(h: float) -> float:
        return abs(phi(h) - 2 * here + phi(-h)) / h

    wide, narrow = gap(step), gap(step / 8)
    rounding = 4 * _ROUNDINGS * epsilon * max(abs(here), size) / (step / 8)
    return narrow > rounding and narrow > 0.5 * wide
