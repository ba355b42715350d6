"""What the spectrum panel measures of one matrix: outer eigenvalues, spectral density, trace, Frobenius norm."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.core.progress import track
from hesse.linalg import Eigen, Estimate, eigsh, spectrum, squared_norm, trace
from hesse.linalg.density import broaden
from hesse.linalg.products import sign_vectors
from hesse.linalg.quadrature import LanczosRuns, memory_error, products_beside, steps_that_fit, vectors_of_run, vectors_that_fit
from hesse.operators import LinearOperator
from hesse.report.deflated import EXACT_DIM, deflate

_EIGENVALUES = 8
_EIGEN_RTOL = 1e-3
_PARTS = 400  # of the width of the spectrum, that the bandwidth is at least
_PROBES, _STEPS, _FEWEST_STEPS = 12, 30, 6  # of the density
_TRACE_RTOL = _NORM_RTOL = 0.05
_TRACE_PRODUCTS, _NORM_PRODUCTS, _EIGEN_PRODUCTS = 128, 48, 256
_POINTS = 800
_NEAR = 12  # bandwidths to either side of zero


@dataclass(frozen=True)
class Outer:
    """The largest eigenvalues, descending, with their residuals, and the smallest one."""

    largest: Eigen
    smallest: float

    @property
    def width(self) -> float:
        """Of the spectrum, zero included."""
        return max(float(self.largest.values.max()), 0.0) - min(self.smallest, 0.0)

    def rows(self) -> list[tuple[float, float]]:
        """Eigenvalues and residuals, largest first."""
        order = self.largest.values.argsort(descending=True)
        values, residuals = self.largest.values[order], self.largest.residuals[order]
        return list(zip(values.double().tolist(), residuals.double().tolist(), strict=True))


def outer_eigenvalues(A: LinearOperator, generator: torch.Generator) -> Outer:
    """Up to 8 eigenvalues at the upper end, and the lowest.

    Cost: some 30 to 100 products, at most 512 (up to dimension 256: as many as dimensions, twice).
    """
    with quiet():
        options: dict[str, Any] = {"rtol": _EIGEN_RTOL, "max_products": _EIGEN_PRODUCTS, "on_failure": "return"}
        largest = eigsh(A, min(_EIGENVALUES, A.shape[0]), generator=generator, **options)
        smallest = eigsh(A, 1, which="smallest", generator=generator, **options)
    return Outer(largest, float(smallest.values[0]))


@dataclass(frozen=True)
class Density:
    """A spectral density in two parts: the eigenvalues that were taken out, and Lanczos quadratures of what is left.

    Attributes:
        known: ``[k]``: the eigenvalues taken out; the rest has k zeros in their place.
        dim: how many eigenvalues there are.
        rule: nodes and weights ``[probes, m]`` of the rest; where all eigenvalues are known one row of them.
        coarse: the rule of fewer Lanczos steps, which tells what the steps have not yet told apart; None: it is exact.
        products: what was spent.
    """

    known: Tensor
    dim: int
    rule: tuple[Tensor, Tensor]
    coarse: tuple[Tensor, Tensor] | None
    products: int

    @property
    def is_exact(self) -> bool:
        """Whether all eigenvalues are known."""
        return self.coarse is None

    @property
    def ends(self) -> tuple[float, float]:
        """The outermost eigenvalues or quadrature nodes."""
        nodes = torch.cat([self.known, self.rule[0].flatten()])
        return float(nodes.min()), float(nodes.max())

    @property
    def resolution(self) -> float:
        """The mean distance of two quadrature nodes, over the ends of what they see; 0 where all eigenvalues are known."""
        nodes = self.rule[0]
        return 0.0 if self.is_exact else float(nodes.max() - nodes.min()) / nodes.shape[1]

    def heights(self, grid: Tensor, bandwidth: float) -> dict[str, list[float]]:
        """The density on a grid as a number of eigenvalues: a single one far from all others is a peak of height 1.

        Args:
            grid: the eigenvalues at which it is given.
            bandwidth: of the peaks.

        Returns:
            ``height``, and ``error``: the standard error over the probes and the change over the last Lanczos steps.
        """
        single = bandwidth * math.sqrt(2 * math.pi)

        def of(rule: tuple[Tensor, Tensor]) -> Tensor:
            return self.dim * single * broaden(grid, *rule, bandwidth)

        samples, error = of(self.rule), torch.zeros_like(grid)
        if self.coarse is not None:
            error = (samples.std(0) / math.sqrt(len(samples))).hypot((samples - of(self.coarse)).mean(0))
        peaks = torch.stack([self.known, torch.zeros_like(self.known)])
        known, zeros = single * broaden(grid, peaks, torch.ones_like(peaks), bandwidth)
        return {"height": (samples.mean(0) + known - zeros).clamp_min(0).tolist(), "error": error.tolist()}

    def below(self, limit: float) -> Estimate:
        """How many eigenvalues are below a limit.

        The error is that over the probes and half of what the last quadrature node below the limit weighs, since a node stands
        for eigenvalues to both of its sides (the inequalities of Chebyshev, Markov and Stieltjes).
        """
        nodes, weights = self.rule
        is_below = nodes < limit
        counts = self.dim * (weights * is_below).sum(-1)
        value = float(counts.mean()) + int((self.known < limit).sum())
        if self.is_exact:
            return Estimate(value, 0.0, self.products)
        last, at = nodes.masked_fill(~is_below, -math.inf).max(-1, keepdim=True)
        edge = torch.where(last > -math.inf, weights.gather(-1, at), torch.zeros_like(last))
        spread = float(counts.std()) / math.sqrt(len(counts))
        return Estimate(value, math.hypot(spread, self.dim * float(edge.mean()) / 2), self.products)


def density_of(A: LinearOperator, outer: Outer, generator: torch.Generator) -> Density:
    """The spectral density, by stochastic Lanczos quadrature beyond dimension 512.

    Raises:
        MemoryBudgetError: not even two bases of some Lanczos steps fit.

    Cost: up to dimension 512 as many products as dimensions; beyond, 360 (fewer where the memory is short).
    """
    if A.shape[0] <= EXACT_DIM:
        s = spectrum(A, method="exact")
        return Density(torch.zeros(0, dtype=torch.float64), s.dim, (s.nodes, s.weights), None, s.products)
    parts = deflate(A, outer.largest)
    room = vectors_that_fit(A, None, "the spectral density")
    probes = max(min(_PROBES, room // vectors_of_run(_STEPS)), 2)
    steps = min(_STEPS, steps_that_fit(room // probes))
    if steps < _FEWEST_STEPS:
        raise memory_error(A, None, _FEWEST_STEPS, "the spectral density")
    runs = LanczosRuns(parts.rest, sign_vectors(A.in_space, probes, generator))
    for step in track(range(1, steps + 1), "spectral density (Lanczos steps)"):
        with products_beside(A, None):
            runs.grow(step)
    coarse = runs.gauss(max(runs.steps - max(runs.steps // 4, 1), 1))
    return Density(parts.values, A.shape[0], runs.gauss(), coarse, runs.products)


def trace_of(A: LinearOperator, generator: torch.Generator) -> Estimate:
    """The trace, its standard error at most about 5%.

    Cost: up to 128 products, or the exact diagonal where the structure knows it.
    """
    with quiet():
        return trace(A, rtol=_TRACE_RTOL, max_products=_TRACE_PRODUCTS, generator=generator, on_failure="return")


def squares_of(A: LinearOperator, generator: torch.Generator) -> Estimate:
    """The squared Frobenius norm.

    Cost: up to dimension 128 as many products as dimensions; beyond, 48 at most.
    """
    with quiet():
        return squared_norm(A, rtol=_NORM_RTOL, max_products=_NORM_PRODUCTS, generator=generator, on_failure="return")


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of estimates that missed their tolerance: their error bars say it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def bandwidth_of(outer: Iterable[Outer], found: Iterable[Density]) -> float:
    """A 400th of the widest spectrum, or what the Lanczos steps can tell apart."""
    widest = max(o.width for o in outer)
    return max(widest / _PARTS, *(density.resolution for density in found)) or 1.0 / _PARTS


def common_grid(found: Iterable[Density], bandwidth: float) -> Tensor:
    """Points over all of the spectra and a margin beyond them."""
    found, margin = list(found), 6 * bandwidth
    low, high = min(density.ends[0] for density in found), max(density.ends[1] for density in found)
    return torch.linspace(low - margin, high + margin, _POINTS, dtype=torch.float64)


def grid_near_zero(bandwidth: float) -> Tensor:
    """Points around zero, of which a bandwidth has ten."""
    return torch.linspace(-_NEAR * bandwidth, _NEAR * bandwidth, 20 * _NEAR + 1, dtype=torch.float64)


def numbers_of(value: Estimate) -> dict[str, float]:
    """An estimate in the form of JSON."""
    return {"value": float(value), "standard_error": value.standard_error, "products": value.products}
