"""The derivative of the gradient, by a second backward pass, against differences of gradients."""

from __future__ import annotations

import math

import torch

from hesse.autodiff.passes import backward_pass
from hesse.check.check_report import Comparison, Finding
from hesse.check.diagnosis import diagnose_slopes
from hesse.check.first_order import FirstOrder, first_line
from hesse.check.subject import Leaves, inner
from hesse.check.verdicts import Line, difference
from hesse.core.random import normal


class SecondOrder:
    """Comparisons of second derivatives: along random pairs of directions, and with respect to the cotangent.

    Args:
        first: the function with a cotangent, its first derivatives right.
        generator: of directions.

    Attributes:
        refused: why there is no second derivative; empty if there is.
        rows, findings: what was compared, and what is wrong.
    """

    def __init__(self, first: FirstOrder, generator: torch.Generator) -> None:
        self.first, self.subject, self._generator = first, first.subject, generator
        self.refused = ""
        self.rows: list[Comparison] = []
        self.findings: list[Finding] = []

    def compare(self, *, by_leaf: bool) -> None:
        """Compare along one random pair of directions, in all leaves together or one leaf after the other.

        Other directions are tried where the differences are too rough along these.

        Cost: 1 gradient of the gradient, and usually 4 gradients for each direction.
        """
        for last in (False, False, True):
            rows = len(self.rows)
            self._compare_once(by_leaf=by_leaf)
            if last or self.findings or all(row.verdict != "undecided" for row in self.rows[rows:]):
                return
            del self.rows[rows:]

    def _compare_once(self, *, by_leaf: bool) -> None:
        w, v = self._directions(), self._directions()
        try:
            along, by_cotangent = self._products(self.subject.leaves, w)
        except (RuntimeError, NotImplementedError) as error:
            self.refused = first_line(error)
            return
        groups = [[leaf] for leaf in range(len(v))] if by_leaf else [list(range(len(v)))]
        wrong = [group for group in groups if self._is_wrong(group, w, v, along, report=by_leaf or len(v) == 1)]
        if wrong and not by_leaf and len(v) > 1:
            located = [leaf for leaf in range(len(v)) if self._is_wrong([leaf], w, v, along, report=True)]
            if not located:
                self._is_wrong(wrong[0], w, v, along, report=True)
        self._compare_cotangent(w, by_cotangent)

    def _products(self, leaves: Leaves, w: Leaves) -> tuple[Leaves, Leaves]:
        """Derivatives of <gradient, w> with respect to the leaves and to the cotangents."""
        own, outputs = self.subject.recorded(leaves)
        cotangents = [u.clone().requires_grad_() for u in self.first.cotangents]
        gradients = backward_pass(outputs, own, cotangents, differentiable=True)
        products = backward_pass(gradients, [*own, *cotangents], w)
        return [g.detach() for g in products[: len(own)]], [g.detach() for g in products[len(own) :]]

    def _is_wrong(self, group: list[int], w: Leaves, v: Leaves, along: Leaves, *, report: bool) -> bool:
        point = self.subject.leaves
        part = [x if leaf in group else torch.zeros_like(x) for leaf, x in enumerate(v)]
        value, line = inner(part, along), self._line(point, self.first.gradient, part, w, along)
        found, scale, kink = difference(line, value, self.first.precision)
        if kink:
            beside, _ = self._products(self.first.beside, w)
            value, line = inner(part, beside), self._line(self.first.beside, self.first.gradient_beside(), part, w, beside)
            found, scale, kink = difference(line, value, self.first.precision)
        verdict = self.first.precision.judge(value, found, scale)
        if verdict == "wrong" and kink:
            verdict = "undecided"
        name = self.subject.names[group[0]] if len(group) == 1 else ""
        error = abs(value - found.value) / scale
        self.rows.append(Comparison("second order", name, 1, error, found.error / scale, verdict))
        if verdict == "wrong" and report:
            words = f"{diagnose_slopes([value], [found.value])}; is everything in the backward pass differentiable?"
            self.findings.append(Finding("second order", name, None, value, found.value, found.error, words))
        return verdict == "wrong"

    def _line(self, point: Leaves, gradient: Leaves, direction: Leaves, w: Leaves, along: Leaves) -> Line:
        def phi(t: float) -> float:
            moved = [x + t * d for x, d in zip(point, direction, strict=True)]
            return inner(w, self.subject.gradient(moved, self.first.cotangents))

        size = max((s * a.abs().max().item() for s, a in zip(self.first.sizes, along, strict=True)), default=0.0)
        return Line(phi, size, inner(w, w) ** 0.5 * _norm(gradient))

    def _compare_cotangent(self, w: Leaves, by_cotangent: Leaves) -> None:
        """The gradient is linear in its cotangent, so that its derivative by it is the gradient of another cotangent."""
        other = [normal(u.shape, u.dtype, u.device, self._generator) for u in self.first.cotangents]
        expected, value = inner(w, self.subject.gradient(self.subject.leaves, other)), inner(other, by_cotangent)
        if not math.isfinite(expected):
            return
        scale = max(abs(expected), 1e-3 * inner(w, w) ** 0.5 * _norm(self.first.gradient), 1e-30)
        error = abs(value - expected) / scale
        good = error <= self.first.precision.tolerance
        check = "second order in the cotangent"
        self.rows.append(Comparison(check, "", 1, error, 0.0, "ok" if good else "wrong"))
        if not good:
            self.findings.append(Finding(check, "", None, value, expected, 0.0, diagnose_slopes([value], [expected])))

    def _directions(self) -> Leaves:
        point = zip(self.subject.leaves, self.first.sizes, strict=True)
        return [size * normal(x.shape, x.dtype, x.device, self._generator) for x, size in point]


def _norm(leaves: Leaves) -> float:
    return inner(leaves, leaves) ** 0.5
