"""Stochastic Lanczos quadrature: ``trace f(A)`` as the mean of ``v^H f(A) v`` over random signs v.

Each sample is a Lanczos quadrature (Ubaru, Chen and Saad, SIAM J. Matrix Anal. Appl. 38, 2017). Two errors are told
apart: the spread over the probes, and the truncation of the quadrature, whose steps grow until it is a small part of
what is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from hesse.core.errors import NonFiniteError
from hesse.core.growth import settle
from hesse.core.memory import Budget, given_budget
from hesse.core.progress import track
from hesse.linalg.estimate import Estimate
from hesse.linalg.options import rounding
from hesse.linalg.products import sign_vectors
from hesse.linalg.quadrature import LanczosRuns, memory_error, products_beside, vectors_of_run, vectors_that_fit
from hesse.operators import LinearOperator

FEWEST_PROBES = 16  # before a standard error is trusted
_MOST_AT_ONCE = 64
_FIRST_STEPS = 10
_SHARE = 0.1  # of the tolerance, that the truncation may take
_SLOWEST = 0.95  # ratio of successive changes above which convergence is not extrapolated further

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class QuadratureEstimate(Estimate):
    """An `Estimate` by stochastic Lanczos quadrature.

    Attributes:
        standard_error: that over the probes, plus the truncation.
        truncation: how far the quadratures may be off: half the distance of the Gauss and the Gauss-Radau rule where
            they enclose the truth, else what the convergence between Lanczos steps tells.
        probes: how many random vectors.
        steps: the most Lanczos steps for one of them.
    """

    truncation: float = 0.0
    probes: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Sampled:
    """What the samples gave: values ``[probes, ...]``, their errors, and the price."""

    values: Tensor
    error: float
    truncation: float
    steps: int
    products: int
    converged: bool

    def estimate(self) -> QuadratureEstimate:
        """The mean of scalar samples."""
        error = self.error + self.truncation
        mean = float(self.values.mean())
        return QuadratureEstimate(mean, error, self.products, self.truncation, len(self.values), self.steps)


@dataclass(frozen=True)
class Limits:
    """When to stop.

    Attributes:
        rtol, atol: the error (over the probes, and of the quadrature) to reach.
        products: most products that may be spent.
        exact: give up once it is plain that more products than this are needed.
    """

    rtol: float
    atol: float
    products: int
    exact: float = math.inf


@dataclass(frozen=True)
class Measure:
    """What a probe's quadrature is asked for; `by_convergence` and `by_bounds` are two for numbers.

    Attributes:
        values: the samples ``[b, ...]`` of the runs so far, and how far their quadrature may be off.
        size: the size of a mean of samples, or of its standard error.
        noise: an error that rounding makes anyway.
    """

    values: Callable[[LanczosRuns], tuple[Tensor, float]]
    size: Callable[[Tensor], float]
    noise: float = 0.0

    def mean_and_error(self, samples: Tensor) -> tuple[float, float]:
        """The size of the mean over the probes, and that of its standard error."""
        n = len(samples)
        spread = samples.std(0) / math.sqrt(n) if n > 1 else torch.full_like(samples[0], torch.inf)
        return self.size(samples.mean(0)), self.size(spread)


def _magnitude(number: Tensor) -> float:
    return abs(float(number))


def by_convergence(f: Function, is_psd: bool, noise: float = 0.0) -> Measure:
    """Gauss rules, whose truncation the change between Lanczos steps tells.

    Args:
        f: the function.
        is_psd: nodes that rounding made negative are taken for zero.
        noise: an error that rounding makes anyway.
    """

    def integral(runs: LanczosRuns, steps: int) -> Tensor:
        nodes, weights = runs.gauss(steps)
        return runs.squared_norms * (weights * evaluate(f, nodes.clamp_min(0) if is_psd else nodes)).sum(-1)

    def values(runs: LanczosRuns) -> tuple[Tensor, float]:
        return extrapolated(runs, integral, lambda change: float(change.abs().mean()))

    return Measure(values, _magnitude, noise)


def extrapolated(
    runs: LanczosRuns, integral: Callable[[LanczosRuns, int], Tensor], size: Callable[[Tensor], float]
) -> tuple[Tensor, float]:
    """Integrals at the present step, and their error from three steps, as if they converged geometrically."""
    m = runs.steps
    last = integral(runs, m)
    if runs.is_exact:
        return last, 0.0
    stride = max(2, m // 5)
    middle, first = integral(runs, m - stride), integral(runs, m - 2 * stride)
    old, new = size(middle - first), size(last - middle)
    ratio = min(new / old, _SLOWEST) if old > 0 else 0.0
    return last, new * max(1.0, ratio / (1 - ratio))


def by_bounds(f: Function, floor: float, noise: float = 0.0) -> Measure:
    """Gauss and Gauss-Radau rules on either side of the truth.

    Args:
        f: its derivatives alternate in sign from `floor` on (logarithms, ``x / (x + damping)``).
        floor: a lower bound of the spectrum.
        noise: an error that rounding makes anyway.
    """

    def values(runs: LanczosRuns) -> tuple[Tensor, float]:
        (nodes, weights), (radau_nodes, radau_weights) = runs.gauss(), runs.radau(floor)
        nodes, radau_nodes = nodes.clamp_min(floor), radau_nodes.clamp_min(floor)
        upper = (weights * evaluate(f, nodes)).sum(-1)
        lower = (radau_weights * evaluate(f, radau_nodes)).sum(-1)
        if runs.is_exact:
            return runs.squared_norms * upper, 0.0
        half = (upper - lower).abs() / 2
        return runs.squared_norms * (upper + lower) / 2, float((runs.squared_norms * half).mean())

    return Measure(values, _magnitude, noise)


def evaluate(f: Function, values: Tensor) -> Tensor:
    """`f` of eigenvalues, in double precision.

    Raises:
        NonFiniteError: NaN or infinity.
    """
    found = f(values).double()
    if bool(torch.isfinite(found).all()):
        return found
    bad = values[~torch.isfinite(found)]
    raise NonFiniteError(
        "The function of the operator is not finite on its spectrum.",
        f"f({float(bad[0]):.6g}) = {float(f(bad[:1])[0])}",
        "pass a function that is finite between the smallest and the largest eigenvalue, or add damping: A + c * identity",
    )


class Sampling:
    """Probes are drawn and their quadratures grown until the tolerance is met, or the limits are reached.

    Args:
        A: a Hermitian operator.
        measure: what a probe's quadrature is asked for.
        limits: when to stop.
        generator: source of the random signs.
        memory: bytes, fraction or text; by default the budget in force.
        label: what progress and errors call it.
    """

    def __init__(
        self,
        A: LinearOperator,
        measure: Measure,
        limits: Limits,
        generator: torch.Generator,
        memory: Budget | None,
        label: str,
    ) -> None:
        self.A, self.measure, self.limits, self.generator = A, measure, limits, generator
        self.memory, self.label = memory, label
        self.dim, self.eps = A.shape[0], rounding(A)
        self.parts: list[Tensor] = []
        self.runs: list[LanczosRuns] = []
        self.products, self.steps, self.truncation = 0, min(_FIRST_STEPS, max(A.shape[0], 1)), 0.0

    def run(self) -> Sampled:
        """The samples, once they are good enough or too expensive."""
        if self.dim == 0:
            return Sampled(torch.zeros(1, dtype=torch.float64), 0.0, 0.0, 0, 0, True)
        wanted, error, converged = FEWEST_PROBES, math.inf, False
        for _ in track(count(), self.label):
            room = vectors_that_fit(self.A, self.memory, self.label)
            affordable = (self.limits.products - self.products) // self.steps
            wanted = min(wanted, max(1, room // vectors_of_run(self.steps)), affordable)
            if wanted < 1:
                break
            is_close = self._block(wanted)
            samples = torch.cat(self.parts)
            size, error = self.measure.mean_and_error(samples)
            target = self._target(size)
            enough = len(samples) >= FEWEST_PROBES
            converged = enough and is_close and error + self.truncation <= target
            needed = len(samples) * (error / max(target - self.truncation, target / 2)) ** 2 if target > 0 else math.inf
            if converged or (enough and max(self.products, needed * self.steps) > self.limits.exact) or not is_close:
                break
            wanted = int(min(max(1.1 * needed - len(samples), FEWEST_PROBES // 2), _MOST_AT_ONCE))
        if not self.parts:
            return Sampled(torch.full((1,), torch.nan, dtype=torch.float64), math.inf, math.inf, 0, 0, False)
        return Sampled(torch.cat(self.parts), error, self.truncation, self.steps, self.products, converged)

    def _target(self, size: float) -> float:
        return max(self.limits.atol, self.limits.rtol * size, 8 * self.eps * size, self.measure.noise)

    def _block(self, wanted: int) -> bool:
        """So many probes more; whether their truncation is a small part of the tolerance."""
        runs = LanczosRuns(self.A, sign_vectors(self.A.in_space, wanted, self.generator))
        goal, spent = self.steps, self.products
        while True:
            self._make_room(runs, goal)
            with products_beside(self.A, self.memory):
                runs.grow(goal)
            self.products = spent + runs.products
            values, truncation = self.measure.values(runs)
            size, _ = self.measure.mean_and_error(torch.cat([*self.parts, values]))
            is_close = runs.is_exact or truncation <= max(_SHARE * self._target(size), 8 * self.eps * size)
            goal = runs.steps + max(4, runs.steps // 3)
            ahead = self.products + (goal - runs.steps) * len(values)
            if is_close or ahead > self.limits.products or self.products > self.limits.exact:
                break
        runs.finish()
        if given_budget(self.memory, self.A.in_space.device) is not None:
            settle()  # what freed bases leave between small tensors is not used for the next ones
        self.parts.append(values)
        self.runs.append(runs)
        self.truncation = max(self.truncation, truncation)
        self.steps = max(self.steps, runs.steps)
        return is_close

    def _make_room(self, runs: LanczosRuns, goal: int) -> None:
        """Drop runs until a basis of so many steps fits."""
        room = vectors_that_fit(self.A, self.memory, self.label)
        per_run = vectors_of_run(min(goal, self.dim))
        if per_run > room:
            raise memory_error(self.A, self.memory, goal, self.label)
        if len(runs.norms) * per_run > room:
            runs.keep(max(1, room // per_run))
