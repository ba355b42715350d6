"""The effective dimension as a function of the damping, all dampings from the same Lanczos runs."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.core.errors import SymmetryError
from hesse.linalg import Eigen, eigsh, spectrum
from hesse.linalg.options import rounding
from hesse.linalg.quadrature import LanczosRuns
from hesse.linalg.slq import Limits, Measure, Sampling
from hesse.operators import LinearOperator, Tag
from hesse.report.deflated import EXACT_DIM, deflate

_EIGENVALUES = 16  # taken out before random vectors look at the rest
_DECADES, _PER_DECADE = 6, 2
_RTOL = 0.05
_PRODUCTS, _EIGEN_PRODUCTS = 400, 200


@dataclass(frozen=True)
class Curve:
    """Effective dimensions ``[m]`` at dampings ``[m]``, descending, with standard errors (truncation included)."""

    dampings: Tensor
    values: Tensor
    errors: Tensor
    products: int
    is_exact: bool


def effective_dimensions(A: LinearOperator, generator: torch.Generator) -> Curve:
    """``trace(A (A + damping I)^-1)`` at half decades from the largest eigenvalue six decades down (float32: five).

    The answer is that of `hesse.effective_dimension`: from all eigenvalues, or by stochastic Lanczos quadrature between Gauss
    and Gauss-Radau rules. Here one Lanczos run serves all dampings.

    Raises:
        SymmetryError: a negative eigenvalue, of a matrix that is not tagged PSD.

    Cost: up to dimension 512 as many products as dimensions; beyond, 600 at most.
    """
    if A.shape[0] <= EXACT_DIM:
        known = spectrum(A, method="exact")
        nodes, counts = known.nodes[0], known.weights[0] * known.dim
        _require_psd(A, float(nodes.min()), 100 * max(rounding(A), 1e-15) * float(nodes.abs().max()))
        dampings = _dampings(float(nodes.max()), A)
        values = (counts * _share(nodes.clamp_min(0), dampings[:, None])).sum(-1)
        return Curve(dampings, values, torch.zeros_like(values), known.products, True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        pairs = eigsh(A, _EIGENVALUES, rtol=1e-4, max_products=_EIGEN_PRODUCTS, generator=generator, on_failure="return")
    return _Quadrature(A, pairs).run(generator)


def _share(values: Tensor, damping: Tensor) -> Tensor:
    return values / (values + damping)


def _dampings(largest: float, A: LinearOperator) -> Tensor:
    """Powers of ten and their roots in between, from above the largest eigenvalue down."""
    decades = _DECADES if rounding(A) < 1e-12 else _DECADES - 1
    top = math.ceil(math.log10(largest)) if largest > 0 else 0
    steps = torch.arange(decades * _PER_DECADE + 1, dtype=torch.float64) / _PER_DECADE
    return 10.0 ** (top - steps)


def _require_psd(A: LinearOperator, lowest: float, tolerance: float) -> None:
    """Below zero by no more than rounding; what is known to be positive semi-definite is not asked."""
    if Tag.PSD not in A.tags and lowest < -tolerance:
        raise SymmetryError(
            "An effective dimension needs a positive semi-definite matrix.",
            f"an eigenvalue (or Rayleigh quotient) of {lowest:.3g}",
            "use a loss that is convex in the model's output",
        )


class _Quadrature:
    """Effective dimensions of a matrix whose largest eigenvalues are known: those, and Lanczos runs on the rest."""

    def __init__(self, A: LinearOperator, pairs: Eigen) -> None:
        self.A, self.parts = A, deflate(A, pairs)
        largest = float(pairs.values.max())
        self.dampings = _dampings(largest, A)
        self.tolerance = 100 * max(rounding(A), 1e-15) * largest + self.parts.residual
        self.known = _share(self.parts.values, self.dampings[:, None]).sum(-1)
        self.products = pairs.products

    def bounds(self, runs: LanczosRuns) -> tuple[Tensor, Tensor]:
        """``[b, m]``: the lower (Gauss-Radau) and the upper (Gauss) bound of each run on the rest."""
        nodes, weights = runs.gauss()
        _require_psd(self.A, float(nodes.min()), self.tolerance)
        upper, lower = (
            (rule_weights[:, None] * _share(rule_nodes.clamp_min(0)[:, None], self.dampings[:, None])).sum(-1)
            for rule_nodes, rule_weights in ((nodes, weights), runs.radau(0.0))
        )
        size = runs.squared_norms[:, None]
        return (size * upper if runs.is_exact else size * lower), size * upper

    def values(self, runs: LanczosRuns) -> tuple[Tensor, float]:
        """The effective dimensions that each run sees, and half the distance of its bounds."""
        lower, upper = self.bounds(runs)
        middle = self.known + (lower + upper) / 2
        self.scale = middle.mean(0).abs().clamp_min(1e-300)
        return middle, self.size((upper - lower).mean(0) / 2)

    def size(self, values: Tensor) -> float:
        """Relative to the effective dimensions, where that is largest."""
        return float((values.abs() / self.scale).max())

    def run(self, generator: torch.Generator) -> Curve:
        """Probes and steps until the errors are a small part of the values, or the products are spent."""
        limits = Limits(_RTOL, 0.0, _PRODUCTS)
        sampling = Sampling(self.parts.rest, Measure(self.values, self.size), limits, generator, None, "effective dimension")
        found = sampling.run()
        bounds = [self.bounds(runs) for runs in sampling.runs]
        lower, upper = (torch.cat(parts) for parts in zip(*bounds, strict=True))
        probes = len(found.values)
        spread = found.values.std(0) / math.sqrt(probes) if probes > 1 else torch.full_like(self.dampings, torch.inf)
        truncation = (upper - lower).mean(0).abs() / 2
        return Curve(self.dampings, found.values.mean(0), spread + truncation, self.products + found.products, False)
