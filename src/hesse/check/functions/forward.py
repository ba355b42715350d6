"""Forward mode against reverse mode."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hesse.check.check_report import Finding
from hesse.check.diagnosis import diagnose
from hesse.check.functions.case import Case, first_line
from hesse.check.functions.localize import unit_directions
from hesse.check.functions.spot import Spot
from hesse.check.functions.subject import BudgetSpent, Leaves, inner

_DIRECTIONS = {"quick": 2, "full": 6}


def forward(case: Case) -> None:
    """Forward mode against reverse mode, which was confirmed. Cost: 1 evaluation a direction; more where they disagree."""
    spot = case.first
    if any(bool(g.isinf().any() | g.isnan().any()) for g in spot.gradient):
        return
    worst, slopes, canceled = 0.0, [], spot.cancellation
    for number, direction in enumerate(spot.directions(_DIRECTIONS[case.level])):
        v = [x for x in direction if x is not None]
        found = _tangent(case, spot, v)
        if found is None:
            return
        expected = inner(v, spot.gradient)
        size = sum(a.mul(b.abs()).norm().item() ** 2 for a, b in zip(v, (g.abs() for g in spot.gradient), strict=True)) ** 0.5
        bar = spot.precision.tolerance * max(size, abs(expected), 1e-30) + spot.rounded(direction) + canceled
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
