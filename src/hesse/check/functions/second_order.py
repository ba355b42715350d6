"""The derivative of the gradient, by a second backward pass, against differences of gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hesse.autodiff.passes import backward_pass
from hesse.autodiff.recording import nodes
from hesse.check.check_report import Finding, Verdict
from hesse.check.diagnosis import diagnose_slopes
from hesse.check.differences import Difference
from hesse.check.functions.case import Case, first_line
from hesse.check.functions.samples import Samples
from hesse.check.functions.spot import Spot
from hesse.check.functions.subject import BudgetSpent, Leaves, flat, inner, random_state_kept
from hesse.check.verdicts import Line, difference, is_confirmed
from hesse.core.random import normal

_PAIRS = {"quick": 0, "full": 12}  # leaves up to which second derivatives are compared pair by pair
_CLEAR = 30.0  # so many error bars off, needs no second look
_MOST = 0.6  # of the evaluations that are left, for all leaves together
_SHARE = 0.5  # of the evaluations that are left, which one comparison may cost
_SIZE = 1e-3  # of the gradient's cotangent derivative, below which it is measured against the gradient itself


def second_order(case: Case) -> None:
    """Second derivatives along random directions, of pairs of leaves, and with respect to the cotangent.

    Cost: 1 gradient of the gradient, and usually 4 gradients, for each direction; 4 gradients a leaf for pairs.
    """
    if any(not bool(g.isfinite().all()) for g in case.home.gradient):
        return
    if case.subject.is_sparse:
        case.note("no second derivatives with respect to sparse leaves, whose rules in torch have none")
        return
    comparer = _Comparer(case, case.first)
    with case.subject.budget.at_most(_MOST):
        comparer.joint()
    if not comparer.refused and not comparer.wrong and 1 < len(case.first.point) <= _PAIRS[case.level]:
        comparer.pairs()


class _Comparer:
    def __init__(self, case: Case, spot: Spot) -> None:
        self.case, self.spot = case, spot
        self.refused = self.wrong = False

    def joint(self) -> None:
        w, v = self._directions(), self._directions()
        products = self._products(w)
        if products is None:
            return
        along, by_cotangent = products
        verdict: Verdict = "undecided"
        for attempt in range(3):
            verdict = self._compare(v, w, along, "", report=len(v) == 1)
            if verdict != "undecided":
                break
            v = self._directions()
            if attempt == 2:
                self.case.note("second order: differences of gradients are too rough to say")
        if verdict == "wrong" and len(v) > 1:
            self._locate(v, w, along)
        self._cotangent(w, by_cotangent)

    def pairs(self) -> None:
        """The derivative of each leaf's gradient with respect to each leaf."""
        count = len(self.spot.point)
        w, v = self._directions(), self._directions()
        alone = [[x if i == k else torch.zeros_like(x) for i, x in enumerate(w)] for k in range(count)]
        products = [self._products(one) for one in alone]
        for leaf in range(count):
            if self.case.subject.budget.left < 8:
                return
            samples = self._samples([x if i == leaf else None for i, x in enumerate(v)])
            for k, found in enumerate(products):
                if found is not None:
                    name = f"{self.case.names[k]}', '{self.case.names[leaf]}"
                    self._judge(samples, inner([v[leaf]], [found[0][leaf]]), alone[k], [found[0][leaf]], name, report=True)

    def _directions(self) -> Leaves:
        return [self.spot.random(leaf) for leaf in range(len(self.spot.point))]

    def _products(self, w: Leaves) -> tuple[Leaves, Leaves] | None:
        """Derivatives of <gradient, w> with respect to the leaves and to the cotangents."""
        cotangents = [u.clone().requires_grad_() for u in self.spot.cotangents]
        try:
            gradients = self.spot.graph.pull(cotangents, differentiable=True)
            if _is_refused(gradients):
                raise NotImplementedError("a backward pass on the way is marked with @once_differentiable")
            with random_state_kept(self.spot.point, move=True):
                products = backward_pass(gradients, [*self.spot.graph.own, *cotangents], w)
        except BudgetSpent:
            raise
        except Exception as error:
            self.refused = True
            if isinstance(error, (RuntimeError, NotImplementedError)):
                self.case.note(f"no second derivative: {first_line(error)}")
            else:
                self.wrong = True
                self.case.row("second order", "", 1, math.inf, 0.0, "wrong")
                self.case.findings.append(Finding("second order", "", None, None, None, 0.0, f"raises {first_line(error)}"))
            return None
        count = len(self.spot.point)
        return [g.detach() for g in products[:count]], [g.detach() for g in products[count:]]

    def _samples(self, direction: list[Tensor | None]) -> Samples:
        def run(point: Leaves) -> Leaves:
            return self.case.subject.record(point).pull(self.spot.cotangents)

        return Samples(run, self.spot.point, direction, self.spot.gradient)

    def _compare(self, v: Leaves, w: Leaves, along: Leaves, name: str, *, report: bool) -> Verdict:
        return self._judge(self._samples([*v]), inner(v, along), w, along, name, report=report)

    def _judge(self, samples: Samples, value: float, w: Leaves, along: Leaves, name: str, *, report: bool) -> Verdict:
        moving = [i for i, v in enumerate(samples.direction) if v is not None]
        v = [x for x in samples.direction if x is not None]
        known = along if len(along) == len(v) else [along[i] for i in moving]
        typical = sum((a * b).norm().item() ** 2 for a, b in zip(v, known, strict=True)) ** 0.5
        cotangent = flat(w)
        samples.change(self.spot.precision.steps[0])
        line = Line(
            samples.phi(cotangent), value, typical, max(samples.size(cotangent), 1e-3 * self._size(w)), samples.gap(cotangent)
        )
        with self.case.subject.budget.at_most(_SHARE):
            found, kink = difference(line, self.spot.precision)
        verdict = line.verdict(self.spot.precision, found)
        if kink or (verdict == "wrong" and not self._is_confirmed(line, found)):
            verdict = "undecided"
        scale = line.scale(self.spot.precision, found)
        if verdict != "undecided":
            self.case.row("second order", name, 1, abs(value - found.value) / scale, found.error / scale, verdict)
        if verdict == "wrong":
            self.wrong = True
            if report:
                self._finding(name, value, found.value, found.error)
        return verdict

    def _is_confirmed(self, line: Line, found: Difference) -> bool:
        """Whether smaller steps show a disagreement too; the evidence there is has to do where no evaluations are left."""
        if not math.isfinite(line.value):
            return found.error <= self.spot.precision.useless * line.scale(self.spot.precision, found)
        try:
            return is_confirmed(line, self.spot.precision, found.value)
        except BudgetSpent:
            return abs(line.value - found.value) > _CLEAR * found.error

    def _size(self, w: Leaves) -> float:
        return inner(w, w) ** 0.5 * inner(self.spot.gradient, self.spot.gradient) ** 0.5

    def _finding(self, name: str, value: float, expected: float, bar: float) -> None:
        words = f"{diagnose_slopes([value], [expected])}; is everything in the backward pass differentiable?"
        self.case.findings.append(Finding("second order", name, None, value, expected, bar, words))

    def _locate(self, v: Leaves, w: Leaves, along: Leaves) -> None:
        """The leaves by which the gradient's derivative is wrong."""
        known = len(self.case.findings)
        for leaf, name in enumerate(self.case.names):
            if self.case.subject.budget.left >= 5:
                samples = self._samples([x if i == leaf else None for i, x in enumerate(v)])
                self._judge(samples, inner([v[leaf]], [along[leaf]]), w, along, name, report=True)
        if len(self.case.findings) == known:
            samples = self._samples([*v])
            self._judge(samples, inner(v, along), w, along, "", report=self.case.subject.budget.left >= 5)
        if len(self.case.findings) == known:
            self.case.findings.append(Finding("second order", "", None, None, None, 0.0, "wrong along random directions"))

    def _cotangent(self, w: Leaves, by_cotangent: Leaves) -> None:
        """The gradient is linear in its cotangent, so that its derivative by it is the gradient of another cotangent."""
        spot = self.spot
        other = [normal(u.shape, u.dtype, u.device, spot.generator) for u in spot.cotangents]
        pulled = spot.graph.pull(other)
        expected, value = inner(w, pulled), inner(other, by_cotangent)
        if not math.isfinite(expected):
            return
        typical = sum((a * g).abs().double().square().sum().item() for a, g in zip(w, pulled, strict=True)) ** 0.5
        scale = max(abs(expected), typical, _SIZE * self._size(w), 1e-30)
        error = abs(value - expected) / scale
        good = error <= spot.precision.tolerance + 10 * spot.rounded([*w]) / scale
        check = "second order in the cotangent"
        self.case.row(check, "", 1, error, 0.0, "ok" if good else "wrong")
        if not good:
            words = diagnose_slopes([value], [expected])
            self.case.findings.append(Finding(check, "", None, value, expected, 0.0, words))


def _is_refused(gradients: Leaves) -> bool:
    """Whether gradients come from a pass marked with `once_differentiable`, past which autograd gives zeros silently."""
    graph = nodes([g.grad_fn for g in gradients if g.grad_fn is not None])
    return any(type(node).__name__ == "Error" for node in graph)
