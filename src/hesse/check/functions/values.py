"""First derivatives against differences: at the point, beside its kinks, and for other cotangents."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress

import torch
from torch import Tensor

from hesse.autodiff.recording import nodes
from hesse.check.check_report import Finding
from hesse.check.diagnosis import diagnose
from hesse.check.functions.case import Case, has_ties, tied
from hesse.check.functions.judging import judge
from hesse.check.functions.localize import unit_directions
from hesse.check.functions.spot import Slope, Spot
from hesse.check.functions.subject import BudgetSpent, Leaves, flat
from hesse.check.verdicts import kink_step
from hesse.core.random import normal

_DIRECTIONS = {"quick": 2, "full": 6}
_ELEMENTS = 48  # leaves of so few elements, all together, are compared one by one at level full
_LEAVES = 24  # so many leaves are compared one by one at level full
_REPARAMETRIZED = ("StandardGamma", "Dirichlet")  # implicit reparametrization
_SIDES = 3  # points beside a kink that are tried
_UNITS = 1e3  # units in the last place: outputs that move by less beside others are not resolved


def reverse(case: Case) -> None:
    """Reverse mode at the point, or beside it where the point is a kink. Cost: usually 8 evaluations at level quick."""
    if _report_undefined(case, case.home) or _is_distribution(case):
        return
    case.movement()
    case.first = case.home
    for name, symmetric in zip(case.names, case.home.symmetric, strict=True):
        if symmetric:
            at = f" in '{name}'" if name else ""
            case.note(f"symmetric matrices{at}, and so is the gradient: compared along symmetric directions")
    slopes = _slopes(case, case.home)
    at_kink = bool(slopes) and slopes[-1].kink
    if at_kink:
        names = ", ".join(f"'{name}'" for name in case.names if name)
        kind = _kind(slopes[-1], case.home)
        slopes = _beside(case) or slopes
        words = "what was tried beside it is one too" if slopes[-1].kink else "a point beside it was compared"
        case.note(f"a {kind}{f' at {names}' if names else ''}: {words}")
    if any(s.verdict == "ok" and not s.kink for s in slopes):
        slopes = [s for s in slopes if s.verdict != "undecided" and not s.kink]
    case.slopes = slopes
    judge(case, "reverse mode", slopes, case.first)
    if at_kink and not case.wrong:
        with suppress(BudgetSpent):
            _along_ties(case)


def _is_distribution(case: Case) -> bool:
    """Whether the gradient is one of distributions, not of the numbers drawn; it is then beyond differences."""
    ops = {type(node).__name__ for node in nodes([y.grad_fn for y in case.home.graph.outputs if y.grad_fn is not None])}
    found = sorted(op for op in ops if op.lstrip("_").startswith(_REPARAMETRIZED))
    if found:
        case.note(f"random numbers whose gradient holds for their distribution, not for each draw ({', '.join(found)}): "
                  "no differences of draws can confirm it")  # fmt: skip
        case.row("reverse mode", "", 0, 0.0, math.inf, "undecided")
        case.wrong = True
    return bool(found)


def _beside(case: Case) -> list[Slope]:
    """Slopes beside a kink, at the first point there that is none; those of the last one where all are, or evaluations end."""
    slopes: list[Slope] = []
    for number in range(_SIDES):
        try:
            spot = case.beside(number)
            if spot.rounding is not case.home.rounding:
                case.measure(spot)  # another rounding of a kink is on the other side of it, perhaps
            slopes = _slopes(case, spot)
        except BudgetSpent:
            break
        case.first = spot
        if not slopes[-1].kink:
            break
    return slopes


def _slopes(case: Case, spot: Spot) -> list[Slope]:
    """Slopes along directions, as many as the evaluations allow; the last one is a kink, or none is.

    Raises:
        BudgetSpent: there is none.
    """
    slopes: list[Slope] = []
    try:
        for slope in _compared(case, spot):
            slopes.append(slope)
    except BudgetSpent:
        if not slopes:
            raise
    return slopes


def _compared(case: Case, spot: Spot) -> Iterator[Slope]:
    """Slopes along directions in all leaves together, and in each alone at level full; the last one is a kink, or none is."""
    count = len(spot.point)
    for direction in spot.directions(_DIRECTIONS[case.level]):
        slope = spot.slope(direction)
        yield slope
        if slope.kink:
            return
    if case.level == "full":
        if 1 < count <= _LEAVES:
            leaves = (spot.slope(spot.within(leaf, spot.random(leaf))) for leaf in range(count))
            yield from (s for s in leaves if not s.kink and s.verdict != "undecided")
        if sum(x.numel() for x in spot.point) <= _ELEMENTS:
            for leaf in range(count):
                units = (spot.slope(spot.within(leaf, v)) for _, v in unit_directions(spot, leaf))
                yield from (s for s in units if not s.kink and s.verdict != "undecided")


def _report_undefined(case: Case, spot: Spot) -> bool:
    """Findings where a gradient is not a number, or infinite where the slope is not."""
    reported = False
    for leaf, g in enumerate(spot.gradient):
        odd = g.isnan() if bool(g.isnan().any()) else g.isinf()
        if not bool(odd.any()):
            continue
        place = tuple(int(i) for i in odd.nonzero()[0])
        direction = torch.zeros_like(g)
        direction[place] = spot.sizes[leaf]
        found, rough = spot.plain(spot.within(leaf, direction))
        known = not rough and found.error <= spot.precision.useless * max(abs(found.value), spot.least(direction))
        if bool(g.isnan().any()) or known:
            expected = found.value / spot.sizes[leaf] if known else math.nan
            bar = found.error / spot.sizes[leaf]
            case.findings.append(
                Finding("reverse mode", case.names[leaf], place, g[place].item(), expected, bar, diagnose(g, g))
            )
            case.row("reverse mode", case.names[leaf], 1, math.inf, 0.0, "wrong")
            case.wrong = reported = True
    return reported


def _along_ties(case: Case) -> None:
    """At a kink where elements are equal or zero, compare along directions that keep them so."""
    home = case.home
    if not any(has_ties(x) for x in home.point):
        return
    kept = home.slope([tied(x, home.generator) for x in home.point])
    if not kept.kink and kept.verdict == "wrong" and kept.error_bar <= 1e-3 * kept.scale:
        judge(case, "reverse mode along ties", [kept, home.slope([tied(x, home.generator) for x in home.point])], home,
              "only where elements are equal or zero")  # fmt: skip


def _kind(slope: Slope, spot: Spot) -> str:
    """What differs on the two sides: nothing but the slope, the value, or an infinite slope."""
    phi, step = slope.samples.phi(flat(spot.cotangents)), kink_step(spot.precision)
    right, left = phi(step) / step, -phi(-step) / step
    if not (math.isfinite(right) and math.isfinite(left)):
        return "border of the domain"
    if any(bool(g.isinf().any()) for g in spot.gradient):
        return "place of infinite slope"
    if abs(phi(step / 8) - phi(-step / 8)) > 0.5 * abs(phi(step) - phi(-step)) > 0:
        return "jump, or place of infinite slope,"
    if abs(right - left) <= 1e-2 * abs(right):
        return "kink of single outputs"
    return f"kink (slopes {left:.3g} and {right:.3g} on the two sides of it, along one direction)"


def other_cotangents(case: Case) -> None:
    """Along one direction, cotangents in which every output counts alike, however small; outputs one by one at level full."""
    spot = case.first
    if not case.slopes or case.slopes[0].kink:
        return
    slope = case.slopes[0]
    step = spot.precision.steps[0]
    change = (slope.samples.change(step) - slope.samples.change(-step)) / (2 * step)
    balanced = _balanced(spot, change)
    tried = [balanced, *([] if case.level == "quick" else _single_outputs(spot, 32))]
    slopes = []
    for u in tried:
        one = spot.compared(slope.samples, spot.graph.pull(u), u)
        if one.kink or one.verdict == "undecided":
            continue
        if one.verdict == "wrong":
            own = case.spot(case.subject, spot.point, u)
            judge(case, "reverse mode for another cotangent", [one, own.slope(slope.direction)], own,
                  "seen in outputs that are small beside the others, or in one of them")  # fmt: skip
            return
        slopes.append(one)
    if slopes:
        judge(case, "reverse mode for other cotangents", slopes, spot)


def _balanced(spot: Spot, change: Tensor) -> Leaves:
    size = change.abs()
    least = max(1e-6, _UNITS * spot.precision.epsilon)
    weights = 1 / (size + least * size.max()) if bool(size.max() > 0) else torch.ones_like(size)
    weights = weights / weights.max()
    result, start = [], 0
    for u in spot.cotangents:
        width = u.numel() * (2 if u.is_complex() else 1)
        part = weights[start : start + width]
        part = part.view(*u.shape, 2).amin(-1) if u.is_complex() else part.view(u.shape)
        result.append(u * part.to(device=u.device, dtype=u.real.dtype if u.is_complex() else u.dtype))
        start += width
    return result


def _single_outputs(spot: Spot, count: int) -> Iterator[Leaves]:
    total = sum(u.numel() for u in spot.cotangents)
    for place in range(0, total, max(1, total // count)):
        hot, rest = [torch.zeros_like(u) for u in spot.cotangents], place
        for u in hot:
            if 0 <= rest < u.numel():
                u.view(-1)[rest] = 1
            rest -= u.numel()
        yield hot


def random_cotangents(outputs: Leaves, generator: torch.Generator) -> Leaves:
    """Standard normal numbers like some outputs."""
    return [normal(y.shape, y.dtype, y.device, generator) for y in outputs]
