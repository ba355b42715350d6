"""A function at one point with one cotangent: its recorded gradient, and slopes to compare it with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hesse.check.check_report import Verdict
from hesse.check.differences import Difference
from hesse.check.functions.samples import Samples
from hesse.check.functions.subject import Graph, Leaves, Subject, flat, inner, sizes
from hesse.check.verdicts import Line, Precision, difference, is_confirmed, plain_difference
from hesse.core.random import normal

_CANCELED = 30.0  # units in the last place of the terms of a sum that cancel
_EQUAL = 1e-4  # leaves whose slopes are this much smaller than the largest are moved more, so that they count alike
_FLAT = 1e-11
_NEGLIGIBLE = 1e-9  # slopes this small beside those of other elements are rounding
_TINY = 1e-4  # the same for elements
_RESOLVED = 100.0  # such multiples of the root of the unit of rounding are what differences resolve
_SHARE = 0.5  # of the evaluations that are left, which one slope may cost


@dataclass(frozen=True, eq=False)
class Slope:
    """One slope compared.

    Attributes:
        direction: along which; None for leaves that stay.
        reverse, expected: the slope by reverse mode and by differences.
        error_bar, step: of `expected`.
        scale: the size of the derivative.
        kink: whether the point is a kink, of which the differences say nothing.
        verdict: of the two.
        samples: the outputs along the direction.
    """

    direction: list[Tensor | None]
    reverse: float
    expected: float
    error_bar: float
    step: float
    scale: float
    kink: bool
    verdict: Verdict
    samples: Samples

    @property
    def error(self) -> float:
        """The relative disagreement."""
        error = abs(self.reverse - self.expected) / self.scale
        return error if error == error else math.inf

    @property
    def defect(self) -> float:
        """The disagreement."""
        return self.reverse - self.expected


class Spot:
    """A function at a point, run once.

    Args:
        subject: the function.
        point: where.
        cotangents: like its outputs.
        precision: of the function.
        generator: of directions.
        graph: a run at the point, if there is one already.

    Attributes:
        graph, outputs, gradient: at the point.
        sizes: of the elements of each leaf.
        symmetric: whether each leaf and its gradient are symmetric matrices, or Hermitian ones.
        rounding: how far rounding may move each element of the gradient, once it was measured.

    Cost: 1 evaluation and 1 gradient.
    """

    def __init__(
        self,
        subject: Subject,
        point: Leaves,
        cotangents: Leaves,
        precision: Precision,
        generator: torch.Generator,
        graph: Graph | None = None,
    ) -> None:
        self.subject, self.point, self.cotangents, self.precision = subject, point, cotangents, precision
        self.generator = generator
        self.graph = subject.record(point) if graph is None else graph
        self.outputs = [y.detach() for y in self.graph.outputs]
        self.gradient = self.graph.pull(cotangents)
        self.sizes = sizes(point)
        self.rounding: Leaves | None = None
        self.symmetric = [_is_symmetric(x) and _is_symmetric(g, precision.tolerance)
                          for x, g in zip(point, self.gradient, strict=True)]  # fmt: skip

    @property
    def is_flat(self) -> bool:
        """Whether slopes are so small beside the values that they are rounding."""
        return 0 < self.steepest < _FLAT * inner([u.abs() for u in self.cotangents], [y.abs() for y in self.outputs])

    @cached_property
    def steepest(self) -> float:
        """The largest slope along a single element, moved by as much as it is large."""
        slopes = (s * _finite(g).max().item() for s, g in zip(self.sizes, self.gradient, strict=True) if g.numel())
        return max(slopes, default=0.0)

    @cached_property
    def cancellation(self) -> float:
        """What rounding leaves of a slope, along an element moved by as much as it is large, whose terms cancel.

        The terms are no larger than slopes along other elements, or than the values, which only count in float64.
        """
        value = inner([u.abs() for u in self.cotangents], [y.abs() for y in self.outputs]) if self.precision.is_exact else 0.0
        return _CANCELED * self.precision.epsilon * max(self.steepest, value if math.isfinite(value) else 0.0)

    @property
    def is_finite(self) -> bool:
        """Whether the outputs are finite."""
        return all(bool(y.isfinite().all()) for y in self.outputs)

    def directions(self, count: int) -> Iterator[list[Tensor | None]]:
        """Random directions in which every element takes part: first leaves count alike, in the next elements do, and so on."""
        for number in range(count):
            yield self._by_leaf() if number % 2 == 0 else self._by_element()

    def random(self, leaf: int) -> Tensor:
        """Random numbers of the size of a leaf."""
        x = self.point[leaf]
        return self.kept(leaf, self.sizes[leaf] * normal(x.shape, x.dtype, x.device, self.generator))

    def kept(self, leaf: int, values: Tensor) -> Tensor:
        """Values for a leaf, made symmetric where the leaf and its gradient are, as of functions of symmetric matrices."""
        return (values + values.mH) / 2 if self.symmetric[leaf] else values

    def within(self, leaf: int, values: Tensor) -> list[Tensor | None]:
        """A direction in one leaf."""
        return [values if index == leaf else None for index in range(len(self.point))]

    def samples(self, direction: list[Tensor | None]) -> Samples:
        """The outputs along a direction."""
        return Samples(lambda point: self.subject.record(point).outputs, self.point, direction, self.outputs)

    def slope(self, direction: list[Tensor | None], *, thorough: bool = True) -> Slope:
        """Compare along a direction.

        Cost: usually 4 evaluations; never more if not thorough.
        """
        return self.compared(self.samples(direction), self.gradient, self.cotangents, thorough=thorough)

    def compared(self, samples: Samples, gradient: Leaves, cotangents: Leaves, *, thorough: bool = True) -> Slope:
        """Compare the gradient for a cotangent with what is known along a direction."""
        direction = samples.direction
        moving = [index for index, v in enumerate(direction) if v is not None]
        v, g = [x for x in direction if x is not None], [gradient[index] for index in moving]
        reverse = inner(v, g)
        samples.change(self.precision.steps[0])
        typical = max(_typical(v, g), self._least(samples.direction))
        line = self._line(samples, cotangents, reverse, typical)
        with self.subject.budget.at_most(_SHARE):
            found, kink = difference(line, self.precision, thorough=thorough)
        scale = line.scale(self.precision, found)
        planted = math.isinf(reverse) and found.error <= self.precision.useless * scale  # infinite where the slope is not
        endless = any(bool(t.isinf().any()) for t in g) and not planted and not any(bool(t.isnan().any()) for t in g)
        return Slope(direction, reverse, found.value, found.error, found.step, scale, kink or endless,
                     line.verdict(self.precision, found), samples)  # fmt: skip

    def plain(self, direction: list[Tensor | None]) -> tuple[Difference, bool]:
        """The slope by two central differences, whatever the gradient says, and whether there may be none.

        Cost: 4 evaluations.
        """
        return plain_difference(self._line(self.samples(direction), self.cotangents), self.precision)

    def is_confirmed(self, slope: Slope) -> bool:
        """Whether much smaller steps give the same slope, as they do unless the function is rough, or oscillates fast.

        Cost: 4 evaluations.
        """
        return is_confirmed(self._line(slope.samples, self.cotangents, slope.reverse), self.precision, slope.expected)

    def _line(self, samples: Samples, cotangents: Leaves, value: float = 0.0, typical: float = 0.0) -> Line:
        u = flat(cotangents)
        rounding = self.rounded(samples.direction)
        if self.precision.is_exact:
            rounding += self.cancellation * self._moved(samples.direction)
        return Line(samples.phi(u), value, typical, samples.size(u), samples.gap(u), rounding)

    def is_kink(self) -> bool:
        """Whether the slopes to both sides differ along a random direction.

        Cost: 4 evaluations.
        """
        direction: list[Tensor | None] = [self.random(leaf) for leaf in range(len(self.point))]
        samples, u = self.samples(direction), flat(self.cotangents)
        step = self.precision.steps[0]
        gap, size = samples.gap(u), samples.size(u)
        narrow = gap(step / 8)
        return narrow > 0.5 * gap(step) and narrow > 1e3 * self.precision.epsilon * size / step

    def central(self, direction: list[Tensor | None], step: float) -> Difference:
        """A plain central difference, without an error bar.

        Cost: 2 evaluations.
        """
        samples, u = self.samples(direction), flat(self.cotangents)
        phi = samples.phi(u)
        return Difference((phi(step) - phi(-step)) / (2 * step), 0.0, step)

    def _least(self, direction: list[Tensor | None]) -> float:
        """A slope along a direction that is rounding beside the gradient's other elements."""
        return _NEGLIGIBLE * self.steepest * self._moved(direction)

    def _moved(self, direction: list[Tensor | None]) -> float:
        """How far a direction moves elements, beside how large they are."""
        pairs = [(v, s) for v, s in zip(direction, self.sizes, strict=True) if v is not None and v.numel()]
        return max((v.abs().max().item() / s for v, s in pairs), default=0.0)

    def least(self, direction: Tensor) -> float:
        """A slope, along a direction in one leaf, as small as those by which differences are judged."""
        return 1e-3 * direction.abs().max().item() + 1e-12

    def filled(self, leaf: int, values: Tensor) -> Leaves:
        """A direction in one leaf, with zeros for the others."""
        return [values if index == leaf else torch.zeros_like(x) for index, x in enumerate(self.point)]

    def rounded(self, direction: list[Tensor | None]) -> float:
        """How far rounding of the gradient may move a slope."""
        if self.rounding is None:
            return 0.0
        pairs = [(v, r) for v, r in zip(direction, self.rounding, strict=True) if v is not None]
        return sum((v.abs() * r).norm().item() ** 2 for v, r in pairs) ** 0.5

    def _by_leaf(self) -> list[Tensor | None]:
        contributions = [size * _norm(g) for size, g in zip(self.sizes, self.gradient, strict=True)]
        largest = max(contributions)
        least = max(min(contributions), _EQUAL * largest)
        return [min(1.0, least / c if c > 0 else 1.0) * self.random(leaf) for leaf, c in enumerate(contributions)]

    def _by_element(self) -> list[Tensor | None]:
        largest = self.steepest
        if not largest:
            return [self.random(leaf) for leaf in range(len(self.point))]
        tiny = min(1.0, max(_TINY, _RESOLVED * self.precision.epsilon**0.5))
        shares = [s * _finite(g) + tiny * largest for s, g in zip(self.sizes, self.gradient, strict=True)]
        least = min(share.min().item() for share in shares if share.numel())
        return [
            self.kept(leaf, self.random(leaf) * (least / share).to(x.dtype))
            for leaf, (x, share) in enumerate(zip(self.point, shares, strict=True))
        ]


def _is_symmetric(x: Tensor, tolerance: float = 0.0) -> bool:
    if not (x.dim() >= 2 and x.shape[-1] == x.shape[-2] > 1):
        return False
    return bool((x - x.mH).abs().max() <= tolerance * x.abs().max()) if tolerance else torch.equal(x, x.mH)


def _finite(g: Tensor) -> Tensor:
    return torch.nan_to_num(g.abs(), 0.0, 0.0, 0.0)


def _norm(g: Tensor) -> float:
    return _finite(g).norm().item()


def _typical(v: Leaves, g: Leaves) -> float:
    """The slope along a random direction of this size: the root of the sum of squares of all terms."""
    return sum(_norm(a * b) ** 2 for a, b in zip(v, g, strict=True)) ** 0.5
