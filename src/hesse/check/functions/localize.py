"""Where a wrong gradient is wrong: the leaf, a pattern, and the element, by bisection where there are many."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hesse.check.check_report import Finding
from hesse.check.diagnosis import diagnose, diagnose_pattern
from hesse.check.functions.spot import Slope, Spot
from hesse.check.functions.subject import BudgetSpent

if TYPE_CHECKING:
    from hesse.check.functions.case import Case

_NAMED = 3  # wrong elements of a leaf that get a finding each, and wrong leaves that are looked into
_ELEMENTS = {"quick": 24, "full": 128}  # leaves of so few elements are compared one by one
_NEARLY = 5e-4  # factors so close to 1 are written as a share
_PATTERN = 3  # directions that a pattern has to explain


class Localizer:
    """Findings for a gradient that is wrong along a direction.

    Args:
        case: whose budget is used.
        spot: where the gradient is wrong.
        check: what was compared.
        words: added to every diagnosis.
    """

    def __init__(self, case: Case, spot: Spot, check: str, words: str = "") -> None:
        self.case, self.spot, self.check, self._words = case, spot, check, words

    def findings(self, slope: Slope) -> list[Finding]:
        """What is wrong.

        Cost: what the budget allows, 4 evaluations a leaf and 2 for each halving of one, or for each element of a small one.
        """
        found: list[Finding] = []
        try:
            for leaf, own in self._leaves(slope)[:_NAMED]:
                found.append(self._plain(own, self.case.names[leaf]))
                found[-1:] = self._leaf(leaf, own)
        except BudgetSpent:
            pass  # what is known so far is said
        return found or [self._plain(slope, "")]

    def _affords(self, evaluations: int) -> bool:
        return self.case.subject.budget.left >= evaluations

    def _leaves(self, slope: Slope) -> list[tuple[int, Slope]]:
        moving = [index for index, v in enumerate(slope.direction) if v is not None]
        while len(moving) > 1 and not self._affords(5 * len(moving) + 8) and self._affords(8):
            half = moving[: len(moving) // 2]
            part = self.spot.slope([v if i in half else None for i, v in enumerate(slope.direction)], thorough=False)
            moving = half if abs(part.defect) > 0.5 * abs(slope.defect) else moving[len(moving) // 2 :]
        if len(moving) == 1:
            alone = all(v is None for i, v in enumerate(slope.direction) if i != moving[0])
            return [(moving[0], slope if alone or not self._affords(8) else self._along(moving[0], slope))]
        slopes = [(leaf, self._along(leaf, slope)) for leaf in moving if self._affords(5)]
        wrong = [(leaf, s) for leaf, s in slopes if s.verdict == "wrong" and not s.kink]
        return sorted(wrong or slopes[:1], key=lambda pair: -abs(pair[1].defect))

    def _along(self, leaf: int, slope: Slope) -> Slope:
        values = slope.direction[leaf]
        assert values is not None
        return self.spot.slope(self.spot.within(leaf, values), thorough=False)

    def _leaf(self, leaf: int, slope: Slope) -> list[Finding]:
        x, g = self.spot.point[leaf], self.spot.gradient[leaf]
        count = x.numel() * (2 if x.is_complex() else 1)
        if count <= _ELEMENTS[self.case.level] and self._affords(2 * count):
            return self._elements(leaf, slope)
        slopes = [slope]
        while len(slopes) < _PATTERN and self._affords(5):
            slopes.append(self.spot.slope(self.spot.within(leaf, self.spot.random(leaf)), thorough=False))
        pattern = diagnose_pattern(g, [(s.direction[leaf], s.expected, s.error_bar + 1e-6 * s.scale) for s in slopes])
        if pattern is not None:
            words, expected = pattern
            return self._named(leaf, expected, words, slope.error_bar / self.spot.sizes[leaf])
        if count > 2 and not x.is_complex() and self._affords(2):
            return [self._bisected(leaf, slope)]
        return [self._plain(slope, self.case.names[leaf])]

    def _plain(self, slope: Slope, name: str) -> Finding:
        factor = slope.reverse / (slope.expected or 1)
        words = f"factor {factor:.3f}" if not abs(factor - 1) < _NEARLY else f"off by {abs(factor - 1):.1g} of it"
        words = words if slope.reverse else "zero: missing, or cut off"
        words = f"{words} along a random direction"
        return self._finding(name, None, slope.reverse, slope.expected, slope.error_bar, words, slope)

    def _elements(self, leaf: int, slope: Slope) -> list[Finding]:
        """Every element by a central difference, each with the error bar that these had along the direction."""
        x, g, size = self.spot.point[leaf], self.spot.gradient[leaf], self.spot.sizes[leaf]
        slopes = [self.spot.central(self.spot.within(leaf, v), slope.step).value for _, v in unit_directions(self.spot, leaf)]
        values = torch.tensor(slopes, dtype=torch.float64, device=g.device) / size
        expected = torch.view_as_complex(values.view(*x.shape, 2)) if x.is_complex() else values.view(x.shape)
        return self._named(leaf, expected, diagnose(g.to(expected.dtype), expected), slope.error_bar / size)

    def _named(self, leaf: int, expected: Tensor, words: str, bar: float) -> list[Finding]:
        g = self.spot.gradient[leaf].to(expected.dtype)
        difference = torch.nan_to_num((g - expected).abs(), torch.inf, torch.inf).flatten()
        wrong = (difference > max(1e-5 * expected.abs().max().item(), bar)).nonzero().flatten().tolist()
        chosen = wrong[:_NAMED] if len(wrong) <= 64 else [int(difference.argmax())]
        places = [tuple(int(i) for i in torch.unravel_index(torch.tensor(p), g.shape)) if g.dim() else ()
                  for p in chosen or [int(difference.argmax())]]  # fmt: skip
        name = self.case.names[leaf]
        return [self._finding(name, p, g[p].item(), expected[p].item(), bar, words) for p in places]

    def _bisected(self, leaf: int, slope: Slope) -> Finding:
        """Halve the elements that move; the defect of the other half is what remains."""
        v, g = slope.direction[leaf], self.spot.gradient[leaf]
        assert v is not None
        low, high, defect = 0, v.numel(), slope.defect
        clear = abs(slope.defect) > 3e-5 * slope.scale
        while high - low > 1 and self._affords(3 if clear else 5):
            middle = (low + high) // 2
            part = torch.zeros_like(v).view(-1)
            part[low:middle] = v.reshape(-1)[low:middle]
            part = part.view(v.shape)
            direction = self.spot.within(leaf, part)
            expected = (
                self.spot.central(direction, slope.step).value if clear else self.spot.slope(direction, thorough=False).expected
            )
            own = (part * g).sum().item() - expected
            low, high, defect = (low, middle, own) if abs(own) >= abs(defect - own) else (middle, high, defect - own)
        name, numel = self.case.names[leaf], v.numel()
        if high - low > 1:
            words = f"wrong somewhere in elements {low} to {high - 1} of {numel}, counted flat"
            return self._finding(name, None, slope.reverse, slope.expected, slope.error_bar, words, slope)
        place = tuple(int(i) for i in torch.unravel_index(torch.tensor(low), v.shape))
        value = g[place].item()
        expected = value - defect / v[place].item()
        alone = abs(slope.defect - defect) <= 0.02 * abs(slope.defect)
        factor = f" (factor {value / expected:.3f})" if expected else ""
        words = f"wrong in 1 of {numel} elements, at {place}{factor}" if alone else f"wrong in several of {numel} elements"
        return self._finding(name, place, value, expected, slope.error_bar / abs(v[place].item()), words)

    def _finding(
        self,
        name: str,
        index: tuple[int, ...] | None,
        value: complex,
        expected: complex,
        bar: float,
        words: str,
        along: Slope | None = None,
    ) -> Finding:
        words = f"{words}; {self._words}" if self._words else words
        direction = None if along is None else along.direction
        place = self.spot.subject.place(self.spot.point, self.spot.cotangents, direction)
        return Finding(self.check, name, index, value, expected, bar, words, place)


def unit_directions(spot: Spot, leaf: int) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Every element of a leaf alone, by as much as it is large; complex ones twice."""
    x = spot.point[leaf]
    for number in range(x.numel()):
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(number), x.shape)) if x.dim() else ()
        for unit in (1.0, 1j) if x.is_complex() else (1.0,):
            direction = torch.zeros_like(x)
            direction[index] = torch.tensor(spot.sizes[leaf] * unit)
            yield index, direction
