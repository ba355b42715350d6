"""First derivatives against differences: at the point, beside its kinks, and for other cotangents; forward mode with them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from hesse.check.check_report import Finding, Verdict
from hesse.check.diagnosis import diagnose
from hesse.check.functions.case import Case, first_line, has_ties, tied
from hesse.check.functions.localize import Localizer, unit_directions
from hesse.check.functions.spot import Slope, Spot
from hesse.check.functions.subject import BudgetSpent, Leaves, flat, inner
from hesse.core.random import normal

_DIRECTIONS = {"quick": 2, "full": 6}
_ELEMENTS = 48  # leaves of so few elements, all together, are compared one by one at level full
_LEAVES = 24  # so many leaves are compared one by one at level full
_SIDES = 3  # points beside a kink that are tried
_SEVERITY = {"ok": 0, "undecided": 1, "wrong": 2}


def reverse(case: Case) -> None:
    """Reverse mode at the point, or beside it where the point is a kink. Cost: usually 8 evaluations at level quick."""
    if _report_undefined(case, case.home):
        return
    case.movement()
    slopes = list(_slopes(case, case.home))
    case.first = case.home
    if slopes and slopes[-1].kink:
        _at_kink(case, slopes[-1])
        for number in range(_SIDES):
            case.first = case.beside(number)
            slopes = list(_slopes(case, case.first))
            if slopes and not slopes[-1].kink:
                break
    if any(s.verdict == "ok" and not s.kink for s in slopes):
        slopes = [s for s in slopes if s.verdict != "undecided" and not s.kink]
    case.slopes = slopes
    judge(case, "reverse mode", slopes, case.first)


def _slopes(case: Case, spot: Spot) -> Iterator[Slope]:
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


def judge(case: Case, check: str, slopes: list[Slope], spot: Spot, words: str = "") -> Verdict:
    """Note what slopes say; a disagreement counts where another direction of the same kind shows it too.

    Args:
        case: where to note it.
        check: what is compared.
        slopes: along directions.
        spot: where.
        words: what to add to a finding.

    Returns:
        The verdict.

    Cost: 4 evaluations for a second look at a disagreement, and what is left to find the elements.
    """
    if not slopes:
        return "ok"
    wrong = [s for s in slopes if s.verdict == "wrong" and not s.kink]
    verdicts: list[Verdict] = ["undecided" if s.kink else s.verdict for s in slopes]
    verdict = max(verdicts, key=lambda v: _SEVERITY[v])
    if wrong and not confirmed(case, spot, wrong):
        verdict = "undecided" if spot is case.first else "ok"
    if verdict != "wrong":
        _rows(case, check, slopes, verdict)
        return verdict
    case.wrong = True
    found = Localizer(case, spot, check, words).findings(max(wrong, key=lambda s: s.error))
    _rows(case, check, slopes, verdict, {finding.leaf for finding in found})
    case.findings += found
    return verdict


def confirmed(case: Case, spot: Spot, wrong: list[Slope]) -> bool:
    """Whether a disagreement is more than rounding, stays for smaller steps, and is there along another direction too.

    Cost: 1 evaluation to measure rounding, 2 for a smaller step, 4 for another direction.
    """
    if not math.isfinite(wrong[0].reverse):
        return True
    if spot is not case.home:
        if spot.is_flat:
            return False
        case.measure(spot)
    try:
        if not any(abs(s.defect) > spot.rounded(s.direction) + 3 * s.error_bar and spot.is_confirmed(s) for s in wrong):
            return False
        return len(wrong) > 1 or _is_wrong_again(spot, wrong[0])
    except BudgetSpent:  # the evidence there is has to do
        return abs(wrong[0].defect) > 30 * wrong[0].error_bar + spot.rounded(wrong[0].direction)


def _is_wrong_again(spot: Spot, wrong: Slope) -> bool:
    again = [None if v is None else v * torch.randn(v.shape, generator=spot.generator, dtype=torch.float64).to(v)
             for v in wrong.direction]  # fmt: skip
    return spot.slope(again).verdict == "wrong"


def _rows(case: Case, check: str, slopes: list[Slope], verdict: Verdict, blamed: Collection[str] = ()) -> None:
    """One row a leaf: slopes in all leaves count for each of them, unless other leaves are to blame for what is wrong."""
    for leaf, name in enumerate(case.names):
        own = [s for s in slopes if s.direction[leaf] is not None]
        if blamed and "" not in blamed and name not in blamed:
            own = [s for s in own if sum(v is not None for v in s.direction) == 1]
        if not own:
            continue
        worst = max(own, key=lambda s: (_SEVERITY["undecided" if s.kink else s.verdict], s.error))
        case.row(check, name, len(own), worst.error, worst.error_bar / worst.scale,
                 verdict if worst.verdict == "wrong" or worst.kink else worst.verdict)  # fmt: skip


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


def _at_kink(case: Case, slope: Slope) -> None:
    """Say what kind of kink the point is; where elements are equal or zero, compare along directions that keep them so."""
    home = case.home
    names = ", ".join(f"'{name}'" for name in case.names if name)
    case.note(f"a {_kind(slope, home)}{f' at {names}' if names else ''}: a point beside it was compared")
    if any(has_ties(x) for x in home.point):
        kept = home.slope([tied(x, home.generator) for x in home.point])
        if not kept.kink and kept.verdict == "wrong" and kept.error_bar <= 1e-3 * kept.scale:
            judge(case, "reverse mode along ties", [kept, home.slope([tied(x, home.generator) for x in home.point])], home,
                  "only where elements are equal or zero")  # fmt: skip


def _kind(slope: Slope, spot: Spot) -> str:
    """What differs on the two sides: nothing but the slope, the value, or an infinite slope."""
    phi, step = slope.samples.phi(flat(spot.cotangents)), 1e-5
    right, left = phi(step) / step, -phi(-step) / step
    if not (math.isfinite(right) and math.isfinite(left)):
        return "border of the domain"
    if any(bool(g.isinf().any()) for g in spot.gradient):
        return "place of infinite slope"
    if abs(phi(step / 8) - phi(-step / 8)) > 0.5 * abs(phi(step) - phi(-step)) > 0:
        return "jump, or place of infinite slope,"
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
        if one.kink:
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
    weights = 1 / (size + 1e-6 * size.max()) if bool(size.max() > 0) else torch.ones_like(size)
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


def forward(case: Case) -> None:
    """Forward mode against reverse mode, which was confirmed. Cost: 1 evaluation a direction; more where they disagree."""
    spot = case.first
    if any(bool(g.isinf().any() | g.isnan().any()) for g in spot.gradient):
        return
    worst, slopes = 0.0, []
    for number, direction in enumerate(spot.directions(_DIRECTIONS[case.level])):
        v = [x for x in direction if x is not None]
        found = _tangent(case, spot, v)
        if found is None:
            return
        expected = inner(v, spot.gradient)
        size = sum(a.mul(b.abs()).norm().item() ** 2 for a, b in zip(v, (g.abs() for g in spot.gradient), strict=True)) ** 0.5
        bar = spot.precision.tolerance * max(size, abs(expected), 1e-30) + spot.rounded(direction)
        worst = max(worst, abs(found - expected) / max(size, 1e-30))
        if not abs(found - expected) <= bar:
            slopes.append((found, expected, number))
    case.row("forward mode", case.names[0] if len(case.names) == 1 else "", _DIRECTIONS[case.level], worst, 0.0,
             "wrong" if slopes else "ok")  # fmt: skip
    if slopes:
        case.findings += list(_forward_findings(case, spot, slopes[0][0], slopes[0][1]))


def _forward_findings(case: Case, spot: Spot, found: float, expected: float) -> Iterator[Finding]:
    """Leaf by leaf, and element by element where the budget allows."""
    any_found = False
    for leaf, name in enumerate(case.names):
        x, g = spot.point[leaf], spot.gradient[leaf]
        if x.numel() * (2 if x.is_complex() else 1) > max(1, case.subject.budget.left // (len(case.names) - leaf)):
            continue
        slopes = [_tangent(case, spot, spot.filled(leaf, v)) or 0.0 for _, v in unit_directions(spot, leaf)]
        values = torch.tensor(slopes, dtype=torch.float64, device=g.device) / spot.sizes[leaf]
        tangents = torch.view_as_complex(values.view(*x.shape, 2)) if x.is_complex() else values.view(x.shape)
        wide = g.to(tangents.dtype)
        difference = (tangents - wide).abs()
        if bool(difference.max() > max(1e-6, 1e2 * spot.precision.tolerance) * wide.abs().max().clamp_min(1e-30)):
            any_found = True
            place = tuple(int(i) for i in torch.unravel_index(difference.argmax(), x.shape)) if x.dim() else ()
            yield Finding(
                "forward mode", name, place, tangents[place].item(), wide[place].item(), 0.0, diagnose(tangents, wide)
            )
    if not any_found:
        words = f"factor {found / expected:.3f}" if expected else "along a random direction"
        yield Finding("forward mode", "", None, found, expected, 0.0, f"{words} along a random direction")


def _tangent(case: Case, spot: Spot, v: Leaves) -> float | None:
    try:
        return inner(spot.cotangents, spot.subject.forward(spot.point, v))
    except BudgetSpent:
        raise
    except Exception as error:
        case.note(f"no forward mode: {first_line(error)}")
        return None


def random_cotangents(outputs: Leaves, generator: torch.Generator) -> Leaves:
    """Standard normal numbers like some outputs."""
    return [normal(y.shape, y.dtype, y.device, generator) for y in outputs]
