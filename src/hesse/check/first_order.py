"""First derivatives, in reverse and in forward mode, against differences: element by element or along random directions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.check.check_report import Comparison, Finding, Verdict
from hesse.check.diagnosis import diagnose, diagnose_slopes
from hesse.check.subject import Leaves, Subject, inner, sizes
from hesse.check.verdicts import Line, Precision, difference
from hesse.core.random import normal

_LOCALIZED = 64  # elements of a wrong leaf that are compared one by one
_NAMED = 3  # wrong elements of a leaf that get a finding each
_SHIFT = 1e-2  # how far, relatively, the point beside a kink lies
_TRIES = 4  # random directions tried for a point beside
_SEVERITY = {"ok": 0, "undecided": 1, "wrong": 2}


@dataclass(frozen=True)
class Slope:
    """One slope compared.

    Attributes:
        index: of the element; None along a random direction.
        reverse, forward, expected: the slope in both modes and by differences; forward is None where there is none.
        error_bar, scale: of `expected`, and the size of the derivative.
        kink: whether the point is a kink, so that all this was found beside it.
    """

    index: tuple[int, ...] | None
    reverse: float
    forward: float | None
    expected: float
    error_bar: float
    scale: float
    kink: bool
    reverse_verdict: Verdict
    forward_verdict: Verdict


class FirstOrder:
    """Comparisons of first derivatives of one function with one cotangent.

    Args:
        subject: the function at its point.
        cotangents: like its outputs.
        precision: of the function.
        generator: of directions.

    Attributes:
        outputs, gradient: at the point.
        beside: a point near by, for kinks; its gradient is computed when first needed.
        no_forward: why there is no forward mode; empty if there is.
    """

    def __init__(self, subject: Subject, cotangents: Leaves, precision: Precision, generator: torch.Generator) -> None:
        self.subject, self.cotangents, self.precision, self._generator = subject, cotangents, precision, generator
        self.sizes = sizes(subject.leaves)
        self.outputs, self.gradient = subject.value_and_gradient(subject.leaves, cotangents)
        self._value = inner(cotangents, self.outputs)
        self.beside = self._point_beside()
        self._gradient_beside: Leaves | None = None
        self.no_forward = ""

    def compare(self, leaf: int, *, elements: bool, directions: int) -> list[Slope]:
        """Slopes along every element of a leaf, or along random directions in it."""
        if elements:
            return [self._slope(leaf, index, v) for index, v in self._units(leaf)]
        return [self._slope(leaf, None, self.sizes[leaf] * self._normal(self.subject.leaves[leaf])) for _ in range(directions)]

    def localize(self, leaf: int, slopes: list[Slope]) -> list[Finding]:
        """What is wrong with a leaf, from its slopes and, where only directions were tried, from its elements."""
        findings = []
        for mode in ("reverse", "forward"):
            wrong = [s for s in slopes if getattr(s, f"{mode}_verdict") == "wrong"]
            if wrong:
                findings += self._findings(leaf, f"{mode} mode", mode, slopes, wrong)
        return findings

    def rows(self, leaf: int, slopes: list[Slope]) -> list[Comparison]:
        """The comparisons of a leaf, one a mode."""
        rows = []
        for mode in ("reverse", "forward"):
            tried = [s for s in slopes if getattr(s, mode) is not None]
            if tried:
                worst = max(tried, key=lambda s: (_SEVERITY[getattr(s, f"{mode}_verdict")], _error(s, mode)))
                rows.append(Comparison(f"{mode} mode", self.subject.names[leaf], len(tried), _error(worst, mode),
                                       worst.error_bar / worst.scale, getattr(worst, f"{mode}_verdict")))  # fmt: skip
        return rows

    def _findings(self, leaf: int, check: str, mode: str, slopes: list[Slope], wrong: list[Slope]) -> list[Finding]:
        x, name = self.subject.leaves[leaf], self.subject.names[leaf]
        if slopes[0].index is None and x.numel() <= _LOCALIZED:
            elements = [self._slope(leaf, index, v) for index, v in self._units(leaf)]
            still = [s for s in elements if getattr(s, f"{mode}_verdict") == "wrong"]
            slopes, wrong = (elements, still) if still else (slopes, wrong)
        if slopes[0].index is None or any(s.kink for s in slopes):
            words = diagnose_slopes([getattr(s, mode) for s in wrong], [s.expected for s in wrong])
        else:
            found, expected = (self._assembled(x, slopes, what) / self.sizes[leaf] for what in (mode, "expected"))
            words = diagnose(found, expected)
        named = wrong[:_NAMED] if wrong[0].index is not None else wrong[:1]
        units = [self.sizes[leaf] if s.index is not None else 1.0 for s in named]
        return [Finding(check, name, s.index, getattr(s, mode) / unit, s.expected / unit, s.error_bar / unit, words)
                for s, unit in zip(named, units, strict=True)]  # fmt: skip

    def _assembled(self, x: Tensor, slopes: list[Slope], what: str) -> Tensor:
        values = torch.tensor([getattr(s, what) for s in slopes], dtype=torch.float64)
        if x.is_complex():
            return torch.complex(values[0::2], values[1::2]).reshape(x.shape)
        return values.reshape(x.shape)

    def _slope(self, leaf: int, index: tuple[int, ...] | None, direction: Tensor, *, at_home: bool = True) -> Slope:
        point = self.subject.leaves if at_home else self.beside
        gradient = self.gradient if at_home else self.gradient_beside()
        moved = [direction if i == leaf else torch.zeros_like(x) for i, x in enumerate(point)]
        reverse = inner([direction], [gradient[leaf]])
        finite = gradient[leaf][gradient[leaf].isfinite()]
        size = self.sizes[leaf] * (finite.abs().max().item() if finite.numel() else 0.0)
        line = Line(self.subject.along(point, moved, self.cotangents), size, self._value)
        found, scale, kink = difference(line, reverse, self.precision)
        planted = math.isinf(reverse) and found.error <= self.precision.useless * scale  # infinite where the slope is not
        endless = bool(gradient[leaf].isinf().any()) and not planted
        if at_home and (kink or endless) and not gradient[leaf].isnan().any():
            return self._slope(leaf, index, direction, at_home=False)
        forward = self._forward(point, moved)
        verdicts: list[Verdict] = ["ok" if value is None else self.precision.judge(value, found, scale)
                                   for value in (reverse, forward)]  # fmt: skip
        if not at_home and (kink or math.isinf(found.error)):  # another kink there, or no value: nothing can be said
            verdicts = ["undecided" if verdict == "wrong" else verdict for verdict in verdicts]
        return Slope(index, reverse, forward, found.value, found.error, scale, not at_home, verdicts[0], verdicts[1])

    def _forward(self, point: Leaves, direction: Leaves) -> float | None:
        if self.no_forward:
            return None
        try:
            return inner(self.cotangents, self.subject.forward(point, direction))
        except (RuntimeError, NotImplementedError) as error:
            self.no_forward = first_line(error)
            return None

    def _point_beside(self) -> Leaves:
        """A point near by where the function is finite too: in random directions, last in those of equal signs."""
        for attempt in range(_TRIES):
            shifts = [_SHIFT * size * self._normal(x) for x, size in zip(self.subject.leaves, self.sizes, strict=True)]
            for sign in (1, -1):
                moves = [shift.abs() if attempt == _TRIES - 1 else shift for shift in shifts]
                point = [x + sign * move for x, move in zip(self.subject.leaves, moves, strict=True)]
                if all(y.isfinite().all() for y in self.subject.outputs(point)):
                    return point
        return self.subject.leaves

    def gradient_beside(self) -> Leaves:
        """The gradient at the point beside."""
        if self._gradient_beside is None:
            self._gradient_beside = self.subject.gradient(self.beside, self.cotangents)
        return self._gradient_beside

    def _units(self, leaf: int) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        x = self.subject.leaves[leaf]
        for flat in range(x.numel()):
            index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), x.shape)) if x.dim() else ()
            for unit in (1.0, 1j) if x.is_complex() else (1.0,):
                direction = torch.zeros_like(x)
                direction[index] = torch.tensor(self.sizes[leaf] * unit)
                yield index, direction

    def _normal(self, like: Tensor) -> Tensor:
        return normal(like.shape, like.dtype, like.device, self._generator)


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _error(slope: Slope, mode: str) -> float:
    error = abs(getattr(slope, mode) - slope.expected) / slope.scale
    return error if error == error else math.inf
