"""The gradient in a short type against the same gradient in float64, with an error bar from runs that round otherwise."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.check.check_report import Finding
from hesse.check.diagnosis import diagnose
from hesse.check.functions.case import tied
from hesse.check.functions.shadow import coarsest
from hesse.check.functions.spot import Spot
from hesse.check.functions.subject import BudgetSpent, Leaves, Subject
from hesse.core.random import normal

_RUNS = {"quick": 2, "full": 4}
_MOVEMENTS = 5.0  # an error may be so much larger than what another rounding changes
_UNITS = 30.0  # units in the last place, relative to the whole leaf, that constants on the way may cost
_POINTS = 3  # an error has to show at so many points: a single one may lie beside a kink
CHECK = "own dtype against float64"


def own_type(own: Subject, exact: Spot, runs: int) -> list[Finding]:
    """Compare a function's gradient in its own type with that in float64.

    The point and the cotangent are rounded otherwise, by random units in the last place, a few times; how far the gradient
    moves is how far it may be off. A disagreement counts where it shows at the point and beside it.

    Args:
        own: the function in its own type.
        exact: the same in float64, at the same point.
        runs: with other roundings.

    Returns:
        A finding for each leaf that disagrees.

    Cost: 1 + `runs` evaluations and gradients; three times that, and 2 evaluations in float64, where it disagrees.
    """
    findings = _at(own, exact, own.leaves, exact.gradient, runs)
    for _ in range(_POINTS - 1):
        if not findings:
            return []
        near = [x * (1 + 0.1 * normal(x.shape, torch.float64, x.device, exact.generator)).to(x.dtype) for x in own.leaves]
        there = exact.subject.record([x.to(e.dtype) for x, e in zip(near, exact.point, strict=True)]).pull(exact.cotangents)
        findings = findings if _at(own, exact, near, there, runs) else []
    return findings


def _at(own: Subject, exact: Spot, point: Leaves, right: Leaves, runs: int) -> list[Finding]:
    graph = own.record(point)
    cotangents = [u.to(y.dtype) for u, y in zip(exact.cotangents, graph.outputs, strict=True)]
    wide = [u.to(e.dtype) for u, e in zip(cotangents, exact.cotangents, strict=True)]
    home = [g.to(e.dtype) for g, e in zip(graph.pull(cotangents), right, strict=True)]
    units = [max(torch.finfo(x.dtype).eps, coarsest(graph)) for x in point]
    bars = _bars(own, exact, point, cotangents, home, units, runs)
    rounded = [u - v for u, v in zip(wide, exact.cotangents, strict=True)]
    findings = []
    if any(bool(r.any()) for r in rounded):  # the cotangent itself is another one in the short type
        bars = [bar + torch.finfo(point[0].dtype).eps * e.norm().item() for bar, e in zip(bars, right, strict=True)]
    for name, g, e, bar in zip(own.names, home, right, bars, strict=True):
        odd = bool((e.isfinite() & ~g.isfinite()).any()) and not _overflows(e, own)
        if odd or not (_finite(g) - _finite(e)).norm().item() <= bar:
            difference = torch.nan_to_num((g - e).abs(), torch.inf, torch.inf)
            place = tuple(int(i) for i in torch.unravel_index(difference.argmax(), g.shape)) if g.dim() else ()
            element = bar / max(1.0, g.numel() ** 0.5)
            findings.append(Finding(CHECK, name, place, g[place].item(), e[place].item(), element, diagnose(g, e)))
    return findings


def _bars(
    own: Subject, exact: Spot, point: Leaves, cotangents: Leaves, home: Leaves, units: list[float], runs: int
) -> list[float]:
    """How far, in norm, the gradient of each leaf may be off, where the point is rounded to units relative to its elements."""
    widest = max([*units, *(torch.finfo(u.dtype).eps for u in cotangents), exact.precision.epsilon])
    moved = [0.0] * len(point)
    for _ in range(runs):
        other = [x + 2 * unit * tied(x, exact.generator) for x, unit in zip(point, units, strict=True)]
        also = [u + torch.finfo(u.dtype).eps * tied(u, exact.generator) for u in cotangents]
        try:
            gradient = own.record(other).pull(also)
        except BudgetSpent:
            break
        except Exception:
            continue
        moved = [
            max(m, (_finite(g.to(h.dtype)) - _finite(h)).norm().item()) for m, g, h in zip(moved, gradient, home, strict=True)
        ]
    largest = max((_finite(h).norm().item() * s for h, s in zip(home, exact.sizes, strict=True)), default=0.0)
    norms = [max(_finite(h).norm().item(), 1e-3 * largest / s) for h, s in zip(home, exact.sizes, strict=True)]
    tiny = [torch.finfo(x.dtype).tiny * x.numel() for x in point]
    return [_MOVEMENTS * m + _UNITS * widest * norm + t for m, norm, t in zip(moved, norms, tiny, strict=True)]


def _finite(t: Tensor) -> Tensor:
    return torch.nan_to_num(t, 0.0, 0.0, 0.0)


def _overflows(e: Tensor, own: Subject) -> bool:
    """Whether a gradient cannot be held in the own type."""
    return bool((e.abs() > min(torch.finfo(x.dtype).max for x in own.leaves)).any())
