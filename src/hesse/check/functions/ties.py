"""Points where elements are equal, or zero: what a gradient may be there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hesse.check.check_report import Finding
from hesse.check.functions.case import Case
from hesse.check.functions.spot import Spot
from hesse.check.functions.subject import BudgetSpent, Leaves, flat
from hesse.check.functions.values import judge

_GRID = 0.457  # equal elements lie on multiples of this, where no function of note has a kink
_ELEMENTS = {"quick": 1, "full": 6}
_MARGIN = 0.9  # of the distance of both slopes: sums of kinked terms may leave the interval between them


def equal_elements(case: Case) -> None:
    """A point with many equal elements, along directions in which they stay equal: there a kink among them is none.

    Whatever share of the derivative each of several equal maxima gets, the shares add up to one.

    Cost: 5 evaluations.
    """
    home = case.home
    if all(x.numel() < 2 for x in home.point):
        return
    point = [_on_grid(x, size) for x, size in zip(home.point, home.sizes, strict=True)]
    spot = _spot(case, point)
    if spot is None:
        return
    direction: list[Tensor | None] = [_by_value(x, home.generator) for x in point]
    slope = spot.slope(direction)
    if slope.kink or slope.verdict != "wrong" or slope.error_bar > 1e-4 * slope.scale:
        case.row("equal elements", "", 1, 0.0, slope.error_bar / slope.scale, "ok")
        return
    again = spot.slope([_by_value(x, home.generator) for x in point])
    if not again.kink and again.verdict == "wrong":
        judge(case, "reverse mode at equal elements", [slope, again], spot, "only where elements are equal")


def _on_grid(x: Tensor, size: float) -> Tensor:
    """Four values, two of each sign: many elements are equal, none is zero."""
    if x.is_complex():
        return x
    levels = torch.where(x < 0, -1.0, 1.0) * torch.where(x.abs() > size, 2.0, 1.0)
    return _GRID * size * levels.to(x.dtype)


def _by_value(x: Tensor, generator: torch.Generator) -> Tensor:
    """A random direction in which equal elements stay equal."""
    if x.is_complex() or not x.dim():
        return x.clone()
    values, place = torch.unique(x, return_inverse=True)
    factors = torch.randn(values.shape, generator=generator, dtype=torch.float64, device=generator.device)
    return x * factors.to(device=x.device, dtype=x.dtype)[place]


def zeros(case: Case) -> None:
    """One element after the other set to zero: at a kink, the gradient lies near the slopes on its sides.

    Cost: 5 evaluations an element.
    """
    home = case.home
    for leaf, x in enumerate(home.point):
        for number in range(min(_ELEMENTS[case.level], x.numel())):
            if x.is_complex() or case.wrong or case.subject.budget.left < 5:
                break
            place = number * (x.numel() - 1) // max(1, min(_ELEMENTS[case.level], x.numel()) - 1)
            _zero(case, leaf, place)


def _zero(case: Case, leaf: int, place: int) -> None:
    home = case.home
    point = [x.clone() for x in home.point]
    point[leaf].view(-1)[place] = 0.0
    spot = _spot(case, point)
    if spot is None:
        return
    unit = torch.zeros_like(point[leaf])
    unit.view(-1)[place] = home.sizes[leaf]
    samples, u = spot.samples(spot.within(leaf, unit)), flat(home.cotangents)
    phi, step = samples.phi(u), home.precision.steps[0]
    try:
        sides = [[sign * phi(sign * h) / h for h in (step, step / 2)] for sign in (1, -1)]
    except (RuntimeError, ValueError, ArithmeticError):  # zero is the end of the function's domain
        return
    value = spot.gradient[leaf].reshape(-1)[place].item() * home.sizes[leaf]
    if not all(math.isfinite(s) for pair in sides for s in pair):
        return
    right, left = (2 * near - far for far, near in sides)
    curved = max(abs(far - near) for far, near in sides)
    width = abs(right - left)
    if width <= 20 * curved + 1e-6 * max(abs(right), abs(left)):  # no kink
        return
    low, high = min(left, right) - _MARGIN * width, max(left, right) + _MARGIN * width
    good = low <= value <= high
    case.row("zeros", case.names[leaf], 1, 0.0 if good else abs(value - min(max(value, low), high)) / width, 0.0,
             "ok" if good else "wrong")  # fmt: skip
    if not good:
        size = home.sizes[leaf]
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), unit.shape)) if unit.dim() else ()
        words = f"at a kink with slopes {left / size:.4g} and {right / size:.4g} on its sides; only where an element is zero"
        case.findings.append(Finding("reverse mode at zero", case.names[leaf], index, value / size, math.nan, 0.0, words))


def _spot(case: Case, point: Leaves) -> Spot | None:
    """The function at a point, if it and its gradient are finite there."""
    try:
        spot = case.spot(case.subject, point)
    except BudgetSpent:
        raise
    except Exception:
        return None
    return spot if spot.is_finite and all(bool(g.isfinite().all()) for g in spot.gradient) else None
