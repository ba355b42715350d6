"""Points where elements are equal, or zero: what a gradient may be there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hesse.autodiff.recording import nodes
from hesse.check.check_report import Finding
from hesse.check.functions.case import Case, like_values
from hesse.check.functions.judging import judge
from hesse.check.functions.spot import Spot
from hesse.check.functions.subject import BudgetSpent, Leaves, flat

_GRID = 0.457  # equal elements lie on multiples of this, where no function of note has a kink
_NEGATIVE, _FAR = -1.3247, 1.9031  # of which no sum of a few is zero
_ELEMENTS = {"quick": 1, "full": 6}
_MARGIN = 0.5  # of the distance of both slopes


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
    """Four values, two of each sign: many elements are equal, neither they nor sums of a few are zero."""
    if x.is_complex():
        return x
    levels = torch.where(x < 0, _NEGATIVE, 1.0) * torch.where(x.abs() > size, _FAR, 1.0)
    return _GRID * size * levels.to(x.dtype)


def _by_value(x: Tensor, generator: torch.Generator) -> Tensor:
    """A random direction in which equal elements stay equal."""
    if x.is_complex() or not x.dim():
        return x.clone()
    return x * like_values(x, generator).to(x.dtype)


def zeros(case: Case) -> None:
    """One element after the other set to zero: at a kink, the gradient lies near the slopes on its sides.

    That holds for a single operation. Where several follow on each other, one element may put many numbers on kinks at once,
    and what the chain rule then gives lies anywhere: of relu(x) - relu(-x) at 0, say, 0.

    Cost: 5 evaluations an element.
    """
    home = case.home
    if not _is_single(home):
        return
    for leaf, x in enumerate(home.point):
        for number in range(min(_ELEMENTS[case.level], x.numel())):
            if x.is_complex() or case.wrong or case.subject.budget.left < 5:
                break
            place = number * (x.numel() - 1) // max(1, min(_ELEMENTS[case.level], x.numel()) - 1)
            _zero(case, leaf, place)


def _is_single(spot: Spot) -> bool:
    """Whether one operation leads from the leaves to the outputs."""
    graph = nodes([y.grad_fn for y in spot.graph.outputs if y.grad_fn is not None])
    return sum(1 for node in graph if node.next_functions) == 1


def _zero(case: Case, leaf: int, place: int) -> None:
    home = case.home
    point = [x.clone() for x in home.point]
    point[leaf].view(-1)[place] = 0.0
    spot = _spot(case, point)
    if spot is None:
        return
    unit = torch.zeros_like(point[leaf])
    unit.view(-1)[place] = home.sizes[leaf]
    interval = _between(spot, spot.within(leaf, unit))
    if interval is None:
        return
    low, high, width = interval
    value = spot.gradient[leaf].reshape(-1)[place].item() * home.sizes[leaf]
    good = low - _MARGIN * width <= value <= high + _MARGIN * width
    case.row("zeros", case.names[leaf], 1, 0.0 if good else abs(value - min(max(value, low), high)) / width, 0.0,
             "ok" if good else "wrong")  # fmt: skip
    if not good:
        size = home.sizes[leaf]
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), unit.shape)) if unit.dim() else ()
        words = f"at a kink with slopes between {low / size:.4g} and {high / size:.4g}; only where an element is zero"
        case.findings.append(Finding("reverse mode at zero", case.names[leaf], index, value / size, math.nan, 0.0, words,
                                     spot.subject.place(point, home.cotangents)))  # fmt: skip


def _between(spot: Spot, direction: list[Tensor | None]) -> tuple[float, float, float] | None:
    """Between what a slope may lie at a kink, where each output has a slope of its own on each side, and their distance.

    Returns:
        Nothing where there is no kink, or where the function ends.

    Cost: 4 evaluations.
    """
    samples, u, step = spot.samples(direction), flat(spot.cotangents), spot.precision.steps[0]
    try:
        sides = [[sign * u * samples.change(sign * h) / h for h in (step, step / 2)] for sign in (1, -1)]
    except (RuntimeError, ValueError, ArithmeticError):  # zero is the end of the function's domain
        return None
    if not all(bool(slopes.isfinite().all()) for pair in sides for slopes in pair):
        return None
    right, left = (2 * near - far for far, near in sides)
    curved = max((far - near).abs().max().item() for far, near in sides)
    width = (right - left).abs()
    kinked = width > 20 * curved + 1e-6 * torch.maximum(right.abs(), left.abs())
    if not bool(kinked.any()):
        return None
    low, high = torch.minimum(right, left).sum().item(), torch.maximum(right, left).sum().item()
    return low, high, width[kinked].sum().item()


def _spot(case: Case, point: Leaves) -> Spot | None:
    """The function at a point, if it and its gradient are finite there."""
    try:
        spot = case.spot(case.subject, point)
    except BudgetSpent:
        raise
    except Exception:
        return None
    return spot if spot.is_finite and all(bool(g.isfinite().all()) for g in spot.gradient) else None
