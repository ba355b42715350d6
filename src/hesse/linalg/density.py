"""`Spectrum`: a spectral density with its error band, its moments, its counts and its picture."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hesse.core.errors import MissingExtraError, StructureError
from hesse.linalg.estimate import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FINE = 16  # parts of a bandwidth into which many nodes are sorted before they are broadened
_TAIL = 5  # bandwidths that the grid goes beyond the ends
_POINTS, _MOST_POINTS = 1024, 8192
_AT_ONCE = 2**17  # heights of Gaussians that are held: 1 MiB
_INK, _GRID, _BLUE = "#1c2330", "#d9dee7", "#3b76d1"
_SHADES = "▁▂▃▄▅▆▇█"


def grid_between(low: float, high: float, width: float) -> Tensor:
    """Evenly spaced points, at least two for a bandwidth, from below the lowest eigenvalue to above the highest."""
    low, high = low - _TAIL * width, high + _TAIL * width
    points = min(max(_POINTS, math.ceil(2 * (high - low) / width)), _MOST_POINTS)
    return torch.linspace(low, high, points, dtype=torch.float64)


def broaden(grid: Tensor, nodes: Tensor, weights: Tensor, width: float) -> Tensor:
    """``[b, points]``: Gaussians of this width around the nodes ``[b, m]``, as heavy as their weights."""
    scale = 1 / (width * math.sqrt(2 * math.pi))
    if len(nodes) == 1 and nodes.shape[1] > _MOST_POINTS * _FINE:
        nodes, weights = _sorted_in(nodes, weights, width / _FINE)
    density = torch.zeros(len(nodes), len(grid), dtype=torch.float64)
    step = max(1, _AT_ONCE // max(len(grid) * len(nodes), 1))
    for start in range(0, nodes.shape[1], step):
        part, mass = nodes[:, start : start + step], weights[:, start : start + step]
        heights = (grid - part[..., None]).div_(width).square_().mul_(-0.5).exp_()
        density += scale * torch.einsum("bm,bmp->bp", mass, heights)
    return density


def _sorted_in(nodes: Tensor, weights: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """One node in place of all within this width of each other."""
    cells, at = (nodes[0] / width).round().unique(return_inverse=True)
    return width * cells[None], torch.zeros_like(cells).index_add_(0, at, weights[0])[None]


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum:
    """The spectral density of a Hermitian operator.

    Attributes:
        grid: ``[points]``: where the density is given, in the units of the eigenvalues; float64 on the CPU, as the rest.
        density: ``[points]``: share of the eigenvalues per unit; its area is 1.
        error: ``[points]``: standard error of `density` over the probes; 0 where it is exact.
        nodes, weights: ``[probes, m]``: the quadrature of each probe, whose weights add up to 1. Where it is exact: one row
            with the distinct eigenvalues and their shares.
        bandwidth: standard deviation of the Gaussian.
        dim: how many eigenvalues there are.
        products: products with the operator that were spent.
        is_exact: whether the nodes are the eigenvalues.
    """

    grid: Tensor
    density: Tensor
    error: Tensor
    nodes: Tensor = field(repr=False)
    weights: Tensor = field(repr=False)
    bandwidth: float
    dim: int
    products: int
    is_exact: bool

    def moment(self, p: int) -> Estimate:
        """``trace(A^p) / dim``: the mean p-th power of the eigenvalues.

        Args:
            p: 0 or above. Powers below twice the Lanczos steps are exact for each probe.

        Raises:
            StructureError: `p` is negative or no integer.
        """
        if not isinstance(p, int) or p < 0:
            raise StructureError("A moment needs a power p = 0, 1, 2, ...", f"p={p!r}", "use function_trace for other powers")
        return self._mean((self.weights * self.nodes**p).sum(-1))

    def count(self, low: float, high: float) -> Estimate:
        """How many eigenvalues lie in ``[low, high]``.

        Args:
            low, high: the interval; infinities are allowed.

        Returns:
            an `Estimate`; its standard error is that over the probes, and leaves out eigenvalues that the Lanczos steps
            have not yet told from others near the ends of the interval.

        Raises:
            StructureError: `low` is above `high`.
        """
        if not low <= high:
            raise StructureError("count needs an interval.", f"low={low}, high={high}", "pass low <= high")
        return self._mean(self.dim * (self.weights * ((self.nodes >= low) & (self.nodes <= high))).sum(-1))

    def _mean(self, samples: Tensor) -> Estimate:
        error = 0.0
        if not self.is_exact:
            error = float(samples.std()) / len(samples) ** 0.5 if len(samples) > 1 else math.inf
        return Estimate(float(samples.mean()), error, self.products)

    def plot(self) -> Figure:
        """A figure of the density on a logarithmic axis with its error band, and the nodes below it.

        Returns:
            a matplotlib Figure, which is not shown.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingExtraError(
                "Spectrum.plot() draws with matplotlib.", "matplotlib is not installed", "pip install 'hesse[report]'"
            ) from error
        figure = Figure(figsize=(4.8, 3.2), layout="constrained")
        axes, rug = figure.subplots(2, 1, sharex=True, height_ratios=(12, 1))
        self._draw(axes, rug)
        return figure

    def _draw(self, axes: Any, rug: Any) -> None:
        peak = 1 / (max(self.dim, 1) * self.bandwidth * math.sqrt(2 * math.pi))  # of one eigenvalue by itself
        floor = 0.03 * peak
        x, y = self.grid.numpy(), self.density.clamp_min(floor).numpy()
        curve = torch.where(self.density > floor, self.density, torch.nan).numpy()
        if not self.is_exact:
            lower, upper = (self.density - 2 * self.error).clamp_min(floor), (self.density + 2 * self.error).clamp_min(floor)
            axes.fill_between(
                x, lower.numpy(), upper.numpy(), color=_BLUE, alpha=0.25, linewidth=0, label="± 2 standard errors"
            )
            axes.legend(frameon=False, fontsize=8, labelcolor=_INK, loc="upper right")
        axes.fill_between(x, floor, y, color=_BLUE, alpha=0.12, linewidth=0)
        axes.plot(x, curve, color=_BLUE, linewidth=1.3)
        axes.set_yscale("log")
        axes.set_ylim(floor, 2 * float(self.density.max()) or 1.0)
        axes.set_ylabel("density (log scale)", color=_INK, fontsize=9)
        axes.grid(axis="y", color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        pixel = float(x[-1] - x[0]) / 1500
        shown = (self.nodes[self.weights > 1e-2 / max(self.dim, 1)] / pixel).round().unique().numpy() * pixel
        rug.plot(shown, [0.0] * len(shown), linestyle="none", marker="|", markersize=7, color=_INK, alpha=0.35)
        rug.set_ylim(-1, 1)
        rug.set_yticks([])
        rug.set_xlabel("eigenvalue" if self.is_exact else "eigenvalue (marks: quadrature nodes)", color=_INK, fontsize=9)
        for part, hidden in ((axes, ("top", "right")), (rug, ("top", "right", "left"))):
            part.spines[list(hidden)].set_visible(False)
            part.tick_params(colors=_INK, labelsize=8.5, length=3, width=0.7)
        axes.tick_params(bottom=False)
        axes.spines["bottom"].set_visible(False)

    def __repr__(self) -> str:
        how = "exact" if self.is_exact else f"{len(self.nodes)} probes, up to {self.nodes.shape[1]} Lanczos steps"
        ends = f"{float(self.nodes.min()):.4g} to {float(self.nodes.max()):.4g}" if self.nodes.numel() else "empty"
        products = f"{self.products} product{'' if self.products == 1 else 's'}"
        return (
            f"Spectrum({self.dim} eigenvalues, {ends}, bandwidth {self.bandwidth:.2g}: {how}, {products})\n"
            f"  log density {self._sketch()}"
        )

    def _sketch(self) -> str:
        """The log-density in one line of block characters, over four decades."""
        cells = [float(part.max()) for part in self.density.tensor_split(48)]
        top = max(cells) or 1.0
        levels = [math.log10(max(cell / top, 1e-4)) / 4 + 1 for cell in cells]
        return "".join(_SHADES[round(level * (len(_SHADES) - 1))] if level > 0 else " " for level in levels)
