"""The spectral density of a Hermitian operator: all eigenvalues, or stochastic Lanczos quadrature."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.core import random
from hesse.core.errors import NotConvergedError
from hesse.core.memory import Budget
from hesse.linalg.density import Spectrum, broaden, grid_between
from hesse.linalg.eigenvalues import eigenvalues_rule, exact_eigenvalues
from hesse.linalg.options import ON_FAILURE, check_choice, check_positive, conclude, require_hermitian
from hesse.linalg.quadrature import LanczosRuns
from hesse.linalg.quadrature_question import EXACT_DIM, METHODS, matrix_fits
from hesse.linalg.slq import Limits, Measure, Sampled, Sampling, extrapolated
from hesse.operators import LinearOperator, Tag
from hesse.operators.spread import asked_together

_WIDTH = 0.01  # default bandwidth, as a fraction of the spectrum's width


@asked_together
def spectrum(
    A: LinearOperator,
    *,
    method: str = "auto",
    bandwidth: float | None = None,
    atol: float = 0.05,
    generator: torch.Generator | None = None,
    max_products: int = 10_000,
    on_failure: str = "raise",
    memory: Budget | None = None,
) -> Spectrum:
    """The spectral density of a Hermitian operator: where its eigenvalues lie, blurred by a Gaussian.

    Stochastic Lanczos quadrature with full re-orthogonalization (Lin, Saad and Yang, SIAM Review 58, 2016; Ghorbani,
    Krishnan and Xiao, ICML 2019): the nodes and weights of each random vector's quadrature, broadened and averaged.

    Args:
        A: an operator tagged SYMMETRIC (real), HERMITIAN or PSD.
        method: ``"exact"``: all eigenvalues, by the structure or the dense matrix; ``"lanczos"``: the quadrature;
            ``"auto"``: exact where the structure knows the eigenvalues or dim is at most 512; else the quadrature.
        bandwidth: standard deviation of the Gaussian, in the units of the eigenvalues; by default a hundredth of the
            spectrum's width. The quadrature takes more steps for a smaller one: about the spectrum's width over it.
        atol: the quadrature stops once the area of the error band around the density (one standard error over the
            probes, plus the change between Lanczos steps) is below this; the density itself has the area 1.
        generator: source of the random signs.
        max_products: products that the quadrature may take.
        on_failure: ``"raise"``, or ``"return"`` what was reached, with a warning.
        memory: bytes, fraction or text; by default the budget in force.

    Returns:
        a `Spectrum`: the density on a grid with its error band, and the nodes and weights behind it.

    Raises:
        SymmetryError: the operator is not tagged Hermitian.
        StructureError: no such method; a bandwidth or tolerance that is not positive.
        NotConvergedError: the tolerance was not reached; carries the `Spectrum`.
        MemoryBudgetError: not even the basis of one probe fits.

    Cost: exact: dim products, or none where the structure is known. Quadrature: probes (at least 16) times steps (50 to
    200 for the default bandwidth).
    """
    check_choice("spectrum", "method", method, METHODS)
    check_choice("spectrum", "on_failure", on_failure, ON_FAILURE)
    require_hermitian(A, "spectrum", "for other operators look at the singular values: the spectrum of A.H @ A")
    check_positive("spectrum", bandwidth=bandwidth, atol=atol, max_products=max_products)
    known = None if method == "lanczos" else eigenvalues_rule(A)
    if known is not None or method == "exact" or (method == "auto" and A.shape[0] <= EXACT_DIM and matrix_fits(A, memory)):
        exact = exact_eigenvalues(A, memory) if known is None else known
        return _exact(exact.values, exact.counts, bandwidth, 0 if known is not None else A.shape[0])
    density = _Density(bandwidth, Tag.PSD in A.tags)
    limits, source = Limits(0.0, atol, max_products), generator or random.make_generator()
    measure = Measure(density.values, density.size)
    sampling = Sampling(A, measure, limits, source, memory, "spectral density")
    found = sampling.run()
    result = density.result(A.shape[0], sampling.runs, found.products)
    if not found.converged:
        conclude(_failure(result, atol, found), on_failure)
    return result


def _failure(result: Spectrum, atol: float, found: Sampled) -> NotConvergedError:
    area = float(result.error.sum() * (result.grid[1] - result.grid[0]))
    return NotConvergedError(
        f"The spectral density was not estimated to atol={atol}.",
        f"an error band of area {area:.2g} after {found.products} products, to which the truncation of {found.steps} Lanczos "
        f"steps adds {found.truncation:.2g}",
        f"pass a larger bandwidth than {result.bandwidth:.2g}, or raise atol or max_products",
        result,
    )


def _exact(values: Tensor, counts: Tensor, bandwidth: float | None, products: int) -> Spectrum:
    order = values.argsort()
    nodes, weights = values[order].cpu(), counts[order].cpu()
    dim = round(float(weights.sum()))
    weights = weights / max(dim, 1)
    low, high = (float(nodes[0]), float(nodes[-1])) if len(nodes) else (0.0, 0.0)
    width = default_width(low, high) if bandwidth is None else bandwidth
    grid = grid_between(low, high, width)
    density = broaden(grid, nodes[None], weights[None], width)[0]
    return Spectrum(grid, density, torch.zeros_like(density), nodes[None], weights[None], width, dim, products, True)


def default_width(low: float, high: float) -> float:
    """The bandwidth for a spectrum between two ends."""
    return _WIDTH * (high - low) or _WIDTH * max(abs(low), abs(high)) or _WIDTH


class _Density:
    """Densities of runs on a grid that is held once the ends of the spectrum are known."""

    def __init__(self, bandwidth: float | None, is_psd: bool) -> None:
        self.bandwidth, self.is_psd = bandwidth, is_psd
        self.grid, self.width, self.owner = torch.zeros(2, dtype=torch.float64), 1.0, None

    @property
    def spacing(self) -> float:
        """Between points of the grid."""
        return float(self.grid[1] - self.grid[0])

    def size(self, density: Tensor) -> float:
        """Its area."""
        return float(density.abs().sum()) * self.spacing

    def rule(self, runs: LanczosRuns, steps: int | None = None) -> tuple[Tensor, Tensor]:
        """Nodes and weights; those of PSD operators not below zero."""
        nodes, weights = runs.gauss(steps)
        return (nodes.clamp_min(0) if self.is_psd else nodes), weights

    def values(self, runs: LanczosRuns) -> tuple[Tensor, float]:
        """The density that each run sees, ``[b, points]``, and the area of its truncation."""
        if self.owner in (None, runs):  # the grid follows the first block of runs, and stays for the others
            self.owner = runs
            nodes, _ = self.rule(runs)
            low, high = float(nodes.min()), float(nodes.max())
            self.width = default_width(low, high) if self.bandwidth is None else self.bandwidth
            self.grid = grid_between(low, high, self.width)

        def density(runs: LanczosRuns, steps: int) -> Tensor:
            return broaden(self.grid, *self.rule(runs, steps), self.width)

        return extrapolated(runs, density, lambda change: self.size(change.mean(0)))

    def result(self, dim: int, blocks: list[LanczosRuns], products: int) -> Spectrum:
        """All runs together; shorter ones are filled up with nodes that weigh nothing."""
        longest = max(runs.steps for runs in blocks)
        rules = [self.rule(runs) for runs in blocks]
        nodes = torch.cat([_filled(nodes, longest, nodes[:, -1:]) for nodes, _ in rules])
        weights = torch.cat([_filled(weights, longest, torch.zeros_like(weights[:, -1:])) for _, weights in rules])
        density = torch.cat([broaden(self.grid, *rule, self.width) for rule in rules])
        error = density.std(0) / len(density) ** 0.5 if len(density) > 1 else torch.full_like(self.grid, torch.inf)
        return Spectrum(self.grid, density.mean(0), error, nodes, weights, self.width, dim, products, False)


def _filled(part: Tensor, length: int, filler: Tensor) -> Tensor:
    return torch.cat([part, filler.expand(-1, length - part.shape[1])], dim=1)
