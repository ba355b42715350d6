"""The gradient that training uses, checked parameter by parameter against differences in float64.

Both sides run on private float64 copies: reverse mode once, and Ridders' differences of the loss along random
directions, each of which moves one parameter only. A direction has independent standard normal entries, so a wrong
derivative of any one element shows in every direction, and the slope along it is of the size of the gradient's norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.check.differences import Difference, best_difference, has_kink
from hesse.check.float64 import Float64Loss, slope
from hesse.check.replica import Model, Replica
from hesse.core.progress import track
from hesse.core.random import make_generator
from hesse.core.tree import Tree

Verdict = Literal["ok", "wrong", "undecided"]
_STEPS = (1e-3, 1e-5, 1e-6, 2e-2)  # relative to the parameter's own size, in the order in which they are tried
_FINE = 1e-4  # relative error bar that settles the matter where both sides agree
_TOLERANCE = 1e-5  # relative disagreement that rounding of the reverse pass may cause
_BARS = 3.0  # error bars of the differences that are allowed
_USELESS = 1e-2  # relative error bar beyond which the differences decide nothing
_MORE_TRIES = 2
_KINK_STEPS = (1e-3, 1e-4, 1e-5)  # relative steps at which kinks are looked for
_SEVERITY = {"ok": 0, "undecided": 1, "wrong": 2}


@dataclass(frozen=True)
class ParameterVerdict:
    """What the check found for one parameter.

    Attributes:
        name, shape: of the parameter.
        gradient_norm: Euclidean norm of the reverse-mode gradient in float64.
        error: worst disagreement of the two derivatives over the directions, relative to the gradient's norm.
        error_bar: error bar of the differences at that direction, on the same scale.
        own_dtype_error: relative distance of the gradient in the model's own dtype from the one in float64.
        verdict: "ok", "wrong", or "undecided" where the differences are too rough to say.
        kink: whether the loss has a kink at the very point or too close to it, so that a point beside it was checked.
    """

    name: str
    shape: tuple[int, ...]
    gradient_norm: float
    error: float
    error_bar: float
    own_dtype_error: float
    verdict: Verdict
    kink: bool

    @property
    def ok(self) -> bool:
        """Whether the differences confirm the derivative."""
        return self.verdict == "ok"


@dataclass(frozen=True)
class ParameterCheck:
    """The check of all parameters.

    Attributes:
        rows: one verdict a parameter, in the order of the model.
        directions: random directions tried for each parameter.
        own_dtype: the dtype that the model came in.
    """

    rows: tuple[ParameterVerdict, ...]
    directions: int
    own_dtype: torch.dtype

    @property
    def ok(self) -> bool:
        """Whether every parameter is confirmed."""
        return all(row.ok for row in self.rows)

    def __str__(self) -> str:
        counts = {verdict: sum(row.verdict == verdict for row in self.rows) for verdict in ("ok", "wrong", "undecided")}
        shown = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
        return f"ParameterCheck({len(self.rows)} parameters: {shown})"

    __repr__ = __str__


@dataclass(frozen=True)
class _Comparison:
    """One direction: slopes by reverse mode and by differences, relative to the gradient's norm."""

    error: float
    error_bar: float
    kink: bool = False

    @property
    def verdict(self) -> Verdict:
        if not self.error <= _BARS * self.error_bar + _TOLERANCE:  # catches a derivative that is not a number
            return "wrong"
        return "ok" if self.error_bar <= _USELESS else "undecided"


def check_parameters(
    model: Model, loss: Callable[[Any, Any], Tensor], batch: tuple[Tree, Tree], *, directions: int = 2,
    generator: torch.Generator | None = None,
) -> ParameterCheck:
    """Check the reverse-mode gradient of a loss, parameter by parameter, against float64 differences.

    Kinks (ReLU, max-pooling) raise no false alarm: the steps shrink until both sides lie on one smooth piece, a
    disagreement counts unless most of several directions agree, and where the point itself is a kink, a
    point beside it is checked. Nothing of the user's model changes.

    Args:
        model: a module, or a pair (f, params).
        loss: ``loss(output, target)``, a scalar.
        batch: ``(inputs, targets)``.
        directions: random directions for each parameter.
        generator: of the directions; without one, the same directions each time.

    Cost: 1 gradient in the own dtype and 1 in float64, then 4 to 56 float64 evaluations of the loss for each
        parameter and direction (usually 10 to 30).
    """
    generator = make_generator() if generator is None else generator
    own = Replica(model, loss, batch)
    own_gradient = own.gradient()
    exact = Float64Loss(Replica(model, loss, batch, dtype=torch.float64))
    rows = [
        _verdict(exact, name, own_gradient[name], directions, generator)
        for name in track(list(exact.replica.leaves), "checking parameters")
    ]
    own_dtype = next(iter(own.leaves.values())).dtype
    return ParameterCheck(tuple(rows), directions, own_dtype)


def _verdict(
    exact: Float64Loss, name: str, own_gradient: Tensor, directions: int, generator: torch.Generator
) -> ParameterVerdict:
    gradient = exact.gradient[name]
    norm = gradient.norm().item()
    comparisons = [_compare(exact, name, exact.gradient, generator) for _ in range(directions)]
    if any(c.verdict != "ok" for c in comparisons):
        comparisons += [_compare(exact, name, exact.gradient, generator) for _ in range(_MORE_TRIES)]
    agreeing = [c for c in comparisons if c.verdict == "ok"]
    majority = agreeing if 2 * len(agreeing) > len(comparisons) else comparisons
    if not math.isfinite(norm):
        worst = _Comparison(math.inf, 0.0)
    else:
        worst = max(majority, key=lambda c: (_SEVERITY[c.verdict], c.error))
    distance = (own_gradient.to(gradient.dtype) - gradient).norm().item()
    return ParameterVerdict(
        name, tuple(gradient.shape), norm, worst.error, worst.error_bar,
        distance / norm if norm else distance, worst.verdict, any(c.kink for c in comparisons),
    )


def _compare(
    exact: Float64Loss, name: str, gradient: dict[str, Tensor], generator: torch.Generator, *, at_home: bool = True
) -> _Comparison:
    direction = exact.direction(name, generator)
    reverse, scale = slope(gradient[name], direction), exact.scale(name, gradient)
    phi = exact.along(name, direction)

    def compare(found: Difference) -> _Comparison:
        return _Comparison(abs(found.value - reverse) / scale, found.error / scale)

    def enough(found: Difference) -> bool:
        return found.error <= _FINE * scale and compare(found).verdict == "ok"

    comparison = compare(best_difference(phi, _STEPS, enough, exact.epsilon))
    if comparison.verdict == "ok" or not at_home:
        return comparison
    if not any(has_kink(phi, step, exact.epsilon) for step in _KINK_STEPS):
        return comparison
    try:
        beside = _compare(exact, name, exact.shift(generator), generator, at_home=False)
    finally:
        exact.go_home()
    return _Comparison(beside.error, beside.error_bar, kink=True)
