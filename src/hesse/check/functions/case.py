"""What all comparisons of one check share: the function at its point, and what was compared, found and noted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from hesse.check.check_report import Comparison, Finding, Verdict
from hesse.check.diagnosis import diagnose
from hesse.check.functions.spot import Slope, Spot
from hesse.check.functions.subject import BudgetSpent, Leaves, Subject, preserved
from hesse.check.isolation.news import tell
from hesse.check.place import Place

Level = Literal["quick", "full"]
Compute = Callable[[], tuple[Sequence[Tensor], Sequence[Tensor]]]
_SHIFT = 1e-2  # how far, relatively, the point beside a kink lies
_MIDDLE = 0.9  # of the mean, towards which points are moved
_LARGEST = 1e3  # multiple of the cotangent that is tried
_LEADING = 1e-3  # of the largest element of a gradient: leaves that are more than rounding
_UNITS = 1e3  # units in the last place that another order of summation may cost
_MOVEMENTS = 30.0  # such multiples of what a rounding of the point does to the gradient may be rounding
_SCATTER = 1e4  # so many radians between values as far apart as they are large
_ROUNDED = 4.0  # units in the last place by which the point is rounded otherwise


class Case:
    """One function at one point with one cotangent.

    Args:
        home: the function there.
        level: how much is compared.

    Attributes:
        subject, home, level: as given.
        rows, findings, notes: what was compared, what is wrong, and what could not be compared.
        first, slopes: where first derivatives were compared, home or beside a kink there, and along which directions.
        differentiates: whether the function was seen to differentiate itself.
        raised: where a backward pass raised, by check.
        wrong: whether first derivatives are wrong, or beyond differences, so that comparisons built on them say nothing new.
    """

    def __init__(self, home: Spot, level: Level) -> None:
        self.subject: Subject = home.subject
        self.home, self.level = home, level
        self.rows: list[Comparison] = []
        self.findings: list[Finding] = []
        self.notes: list[str] = []
        self.wrong = self.differentiates = False
        self.slopes: list[Slope] = []
        self.first: Spot = home
        self.raised: dict[str, Place] = {}
        self._beside: list[Spot] = []
        self._movement: list[float] | None = None

    @property
    def names(self) -> list[str]:
        """Of the leaves."""
        return self.subject.names

    def note(self, text: str) -> None:
        """Note something once."""
        if text not in self.notes:
            self.notes.append(text)

    def row(self, check: str, leaf: str, count: int, error: float, bar: float, verdict: Verdict) -> None:
        """Note a comparison."""
        self.rows.append(Comparison(check, leaf, count, error if error == error else math.inf, bar, verdict))
        tell(self.rows[-1])

    def beside(self, number: int = 0) -> Spot:
        """A point near by where the function is finite too; the point itself where there is none.

        Cost: 1 evaluation the first time.
        """
        while len(self._beside) <= number:
            self._beside.append(self._point_beside())
        return self._beside[number]

    def _point_beside(self) -> Spot:
        for point in self._points_beside():
            try:
                spot = self.spot(self.subject, point)
            except BudgetSpent:
                raise
            except Exception:
                self.subject.record(self.home.point)  # raises where it is not the point that is refused
                continue
            if spot.is_finite:
                return spot
        return self.home

    def _points_beside(self) -> Iterator[Leaves]:
        """Points shifted at random; then in equal signs, away from borders at zero; then towards the middle of intervals."""
        home = self.home
        for positive in (False, True):
            shifts = [_SHIFT * home.random(leaf) for leaf in range(len(home.point))]
            for sign in (1, -1):
                yield [x + sign * (s.abs() if positive else s) for x, s in zip(home.point, shifts, strict=True)]
        shares = [4 * _SHIFT * torch.rand(x.shape, generator=home.generator, dtype=torch.float64) for x in home.point]
        middles = [_MIDDLE * x.mean() for x in home.point]
        yield [x + s.to(device=x.device, dtype=x.real.dtype) * (m - x)
               for x, s, m in zip(home.point, shares, middles, strict=True)]  # fmt: skip

    def spot(self, subject: Subject, point: Leaves, cotangents: Leaves | None = None) -> Spot:
        """The function at another point, with the same relative rounding of its gradient as at home."""
        home = self.home
        spot = Spot(subject, point, home.cotangents if cotangents is None else cotangents, home.precision, home.generator)
        if self._movement is not None:
            spot.rounding = [share * g.abs().max().item() * torch.ones_like(g, dtype=torch.float64) if g.numel() else g
                             for share, g in zip(self._shares(), spot.gradient, strict=True)]  # fmt: skip
        return spot

    def measure(self, spot: Spot) -> None:
        """Measure how far rounding moves the gradient at a point, by another rounding of point and cotangent.

        Cost: 1 evaluation and 1 gradient, where there is one left.
        """
        if self.subject.budget.left < 1:
            return
        moved = self._rounded_otherwise(spot)
        if moved is not None:
            spot.rounding = [_MOVEMENTS / 6 * torch.nan_to_num((a - b).abs().double(), 0, 0, 0)
                             for a, b in zip(moved, spot.gradient, strict=True)]  # fmt: skip

    def _rounded_otherwise(self, spot: Spot) -> Leaves | None:
        unit = _ROUNDED * spot.precision.epsilon
        try:
            point = [x + unit * tied(x, spot.generator) for x in spot.point]
            cotangents = [u + unit * tied(u, spot.generator) for u in spot.cotangents]
            return spot.subject.record(point).pull(cotangents)
        except BudgetSpent:
            raise
        except Exception:
            return None

    def _shares(self) -> list[float]:
        return [m / size if (size := largest(g)) else 0.0 for m, g in zip(self.movement(), self.home.gradient, strict=True)]

    def movement(self) -> list[float]:
        """How far an element of each leaf's gradient moves when point and cotangent are rounded otherwise.

        Equal elements stay equal, and zeros zero, so that ties and kinks at them stay what they are.

        Cost: 1 evaluation and 1 gradient, the first time.
        """
        if self._movement is None:
            home = self.home
            self.measure(home)
            rounding = [0.0 for _ in home.point] if home.rounding is None else [largest(r) for r in home.rounding]
            self._movement = [6 * r for r in rounding]
        return self._movement

    def agree(self, check: str, compute: Compute, *, words: str = "only here", exact: bool = False, slack: float = 0.0) -> bool:
        """Compare two gradients, or other lists of tensors; what the computation does to point and cotangents is undone.

        Args:
            check: what is compared.
            compute: the two.
            words: added to a diagnosis.
            exact: whether they do not depend on how the point is rounded.
            slack: multiples of the allowed rounding that are allowed besides.
        """
        try:
            with preserved([*self.home.point, *self.home.cotangents]):
                found, expected = compute()
        except BudgetSpent:
            raise
        except Exception as error:
            self.row(check, "", 1, math.inf, 0.0, "wrong")
            self.findings.append(Finding(check, "", None, None, None, 0.0, f"raises {first_line(error)}"))
            return False
        sizes = [slack * largest(t) for t in expected] if slack else ()
        return self.same(check, found, expected, words=words, by_leaf=not exact, names=self.names if exact else None,
                         sizes=sizes)  # fmt: skip

    def same(
        self,
        check: str,
        found: Sequence[Tensor],
        expected: Sequence[Tensor],
        *,
        words: str = "only here",
        by_leaf: bool = True,
        names: Sequence[str] | None = None,
        sizes: Sequence[float] = (),
    ) -> bool:
        """Compare two lists of tensors: a row, and a finding for each that differs by more than rounding.

        Args:
            check: what is compared.
            found, expected: the tensors; where they are not one for each leaf, they are taken for other things.
            words: added to a diagnosis.
            by_leaf: whether they may be gradients, one for each leaf, that are as uncertain as the rounding of the point.
            names: of the tensors.
            sizes: of the numbers that they were computed from, where those are larger.
        """
        by_leaf = by_leaf and len(found) == len(self.names)
        if names is None or len(names) != len(found):
            names = self.names if by_leaf else [""] * len(found)
        if not found:
            return True
        worst, good, factor = 0.0, True, self._factor(expected) if by_leaf else 1.0
        for index, (name, a, b) in enumerate(zip(names, found, expected, strict=True)):
            if torch.equal(a, b):
                continue
            bar = self._bar(b, index if by_leaf else None, sizes[index] if sizes else 0.0, factor)
            if is_close(a, b, bar):
                continue
            good = False
            difference = torch.nan_to_num((a - b).abs(), math.inf, math.inf)
            where = torch.unravel_index(difference.argmax(), a.shape) if a.dim() else ()
            place = tuple(int(i) for i in where)
            worst = max(worst, difference.max().item() / (largest(b) or 1.0))
            self.findings.append(Finding(check, name, place, a[place].item(), b[place].item(), bar,
                                         f"{diagnose(a, b)}; {words}"))  # fmt: skip
        self.row(check, "", 1, worst, 0.0, "ok" if good else "wrong")
        return good

    def close(self, a: Sequence[Tensor], b: Sequence[Tensor], *, by_leaf: bool = True, sizes: Sequence[float] = ()) -> bool:
        """Whether two gradients, or other lists of tensors, are equal but for rounding; `sizes` as of `same`."""
        by_leaf = by_leaf and len(a) == len(self.names)
        factor = self._factor(b) if by_leaf else 1.0
        bars = [self._bar(t, i if by_leaf else None, sizes[i] if sizes else 0.0, factor) for i, t in enumerate(b)]
        return all(torch.equal(s, t) or is_close(s, t, bar) for s, t, bar in zip(a, b, bars, strict=True))

    def _bar(self, b: Tensor, leaf: int | None, size: float, factor: float) -> float:
        bar = max(_UNITS * self.home.precision.epsilon, self.home.precision.asked) * max(largest(b), size)
        if leaf is None:
            return bar
        canceled = self.home.cancellation / self.home.sizes[leaf]
        here = largest(self.home.gradient[leaf])
        return bar + factor * canceled + self.movement()[leaf] * (max(1.0, largest(b) / here) if here else factor)

    def _factor(self, gradient: Sequence[Tensor]) -> float:
        """How much larger a gradient is than the one at home, as for multiples of the cotangent."""
        if self.home.steepest <= self.home.cancellation:  # nothing but rounding, which tells no factor
            return _LARGEST
        pairs = [(largest(b), largest(g)) for b, g in zip(gradient, self.home.gradient, strict=True)]
        home = max((g for _, g in pairs), default=0.0)
        return max([1.0, *(b / g for b, g in pairs if g > _LEADING * home)])


def is_close(a: Tensor, b: Tensor, bar: float) -> bool:
    """Whether two tensors differ by no more than a bar; sums of infinities may be NaN in one and not in the other."""
    if a.shape != b.shape:
        return False
    return bool((((a - b).abs() <= bar) | ~(a.isfinite() | b.isfinite())).all())


def tied(x: Tensor, generator: torch.Generator) -> Tensor:
    """A random direction in which equal elements stay equal, opposite ones opposite, and zeros zero."""
    return x * like_values(x.abs(), generator).to(x.dtype) if x.numel() and x.dim() else x


def like_values(values: Tensor, generator: torch.Generator) -> Tensor:
    """Random factors of the size of 1, equal where values are equal: sines of large multiples of the values, in float64."""
    wide = values.double()
    size = wide.abs().mean().clamp_min(1e-300)
    frequency, phase = (torch.rand(2, generator=generator, dtype=torch.float64, device=generator.device) + 1).tolist()
    return 2**0.5 * torch.sin(_SCATTER * frequency * (wide / size) + 6.3 * phase)


def has_ties(x: Tensor) -> bool:
    """Whether elements are equal, opposite or zero."""
    values = torch.unique(x.abs())
    return len(values) < x.numel() or bool((values == 0).any())


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def differentiates(error: Exception) -> bool:
    """Whether a forward pass raised since it differentiates by something itself that requires no gradient."""
    return "require grad" in str(error)


def largest(t: Tensor) -> float:
    """The largest finite magnitude."""
    if not t.numel():
        return 0.0
    found = t.abs().max().item()
    return found if found - found == 0 else torch.nan_to_num(t.abs(), 0.0, 0.0, 0.0).max().item()
