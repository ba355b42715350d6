"""A robot's map from its odometry and its loop closures: sparse nonlinear least squares over thousands of poses.

Run it with::

    python examples/sparse_least_squares.py [FIGURE]

A robot drives through the streets of a grid city. Its odometry measures each step, with noise, so the integrated path drifts.
Where it comes near a place that it has passed before, it measures where that place lies. The poses (x, y, heading) that
explain all measurements best minimize a sum of squared, whitened residuals (Lu, Milios 1997; Olson et al. 2006), which
Levenberg-Marquardt finds (Moré 1978). Each residual depends on two poses, so the Jacobian is sparse: its pattern and colors
are found once, every Jacobian then takes a product a color, and SuperLU solves the normal equations.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scipy.optimize
import scipy.sparse
import torch
from matplotlib.ticker import NullFormatter
from scipy.sparse.linalg import splu
from torch import Tensor

from drawing import BLUE, GRAY, GREEN, ORANGE, destination, panels, save, style
from hesse import SparseDerivative, prepare_jacobian

POSES, CITY, STRIDE = 2_000, 12, 0.5  # streets each way, a unit apart; steps of half a unit
ODOMETRY, CLOSURE = (0.02, 0.02, 0.01), (0.05, 0.05, 0.02)  # standard errors: forward, sideways, heading
Residual = Callable[[Tensor], Tensor]
Jacobian = Callable[[Tensor], scipy.sparse.csr_array]


@dataclass(frozen=True)
class Survey:
    """What was measured, and the truth.

    Attributes:
        truth: poses, ``[n, 3]``.
        start, end: the two poses of each measurement, ``[m]``.
        measured: the second pose as seen from the first, ``[m, 3]``.
        errors: standard errors, ``[m, 3]``.
    """

    truth: Tensor
    start: Tensor
    end: Tensor
    measured: Tensor
    errors: Tensor

    @property
    def odometry(self) -> Tensor:
        """The poses that follow from the odometry alone: ``[n, 3]``."""
        pose, path = self.truth[0], [self.truth[0]]
        for step in self.measured[: len(self.truth) - 1]:
            pose = torch.cat([pose[:2] + rotated(step[:2], pose[2]), (pose[2] + step[2])[None]])
            path.append(pose)
        return torch.stack(path)


def rotated(vectors: Tensor, angles: Tensor) -> Tensor:
    """``[..., 2]`` by ``[...]``, counterclockwise."""
    x, y, c, s = vectors[..., 0], vectors[..., 1], angles.cos(), angles.sin()
    return torch.stack([c * x - s * y, s * x + c * y], -1)


def relative(poses: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Poses as seen from others: ``[m, 3]``."""
    first, second = poses[start], poses[end]
    return torch.cat([rotated(second[:, :2] - first[:, :2], -first[:, 2]), (second - first)[:, 2:]], 1)


def drive(poses: int) -> Tensor:
    """A random walk through the streets, whose crossings lie at even steps: ``[n, 3]``."""
    generator = torch.Generator().manual_seed(3)
    x, y, heading, path = CITY // 2 * 1.0, CITY // 2 * 1.0, 0.0, []
    for k in range(poses):
        path.append((x, y, heading))
        if k % 2 == 0:
            turns = [turn for turn in (0.0, math.pi / 2, -math.pi / 2) if _inside(x, y, heading + turn)]
            heading += turns[int(torch.randint(len(turns), (), generator=generator))]
        x, y = x + STRIDE * math.cos(heading), y + STRIDE * math.sin(heading)
    return torch.tensor(path, dtype=torch.float64)


def _inside(x: float, y: float, heading: float) -> bool:
    ahead = x + math.cos(heading), y + math.sin(heading)
    return all(-0.1 <= coordinate <= CITY + 0.1 for coordinate in ahead)


def survey(poses: int = POSES) -> Survey:
    """Drive, and measure: every step, and for a quarter of the poses one earlier pose within 0.6 units."""
    truth, generator = drive(poses), torch.Generator().manual_seed(4)
    start, end = [torch.arange(poses - 1)], [torch.arange(1, poses)]
    near = torch.cdist(truth[:, :2], truth[:, :2]) < 0.6
    for k in range(20, poses, 4):
        earlier = near[k, : k - 20].nonzero()[:, 0]
        if len(earlier):
            start.append(torch.tensor([k]))
            end.append(earlier[torch.randint(len(earlier), (1,), generator=generator)])
    starts, ends = torch.cat(start), torch.cat(end)
    errors = torch.tensor([CLOSURE], dtype=torch.float64).repeat(len(starts), 1)
    errors[: poses - 1] = torch.tensor(ODOMETRY, dtype=torch.float64)
    noise = errors * torch.randn(errors.shape, dtype=torch.float64, generator=generator)
    return Survey(truth, starts, ends, relative(truth, starts, ends) + noise, errors)


def residual_of(data: Survey) -> Residual:
    """``[3 n] -> [3 m + 3]``: whitened differences from the measurements, and the first pose, which fixes the frame."""

    def residual(x: Tensor) -> Tensor:
        poses = x.reshape(-1, 3)
        difference = relative(poses, data.start, data.end) - data.measured
        turn = torch.atan2(difference[:, 2].sin(), difference[:, 2].cos())  # headings modulo full turns
        misfit = torch.cat([difference[:, :2], turn[:, None]], 1) / data.errors
        return torch.cat([misfit.reshape(-1), 100 * (poses[0] - data.truth[0])])

    return residual


@dataclass
class Fit:
    """Where it ended, the cost (half the sum of squares) at each step, and the seconds by what they were spent on."""

    x: Tensor
    costs: list[float]
    seconds: dict[str, float] = field(default_factory=lambda: {"residual": 0.0, "Jacobian": 0.0, "solve": 0.0})
    gradient: float = 0.0


def levenberg_marquardt(residual: Residual, jacobian: Jacobian, x: Tensor, steps: int = 50) -> Fit:
    """Minimize half the sum of squared residuals until a step changes it by less than a part in 10⁹."""
    fit, damping, r = Fit(x, []), 1e-3, residual(x)
    fit.costs.append(0.5 * r.square().sum().item())
    for _ in range(steps):
        begin = time.perf_counter()
        J = jacobian(fit.x)
        fit.seconds["Jacobian"] += time.perf_counter() - begin
        begin = time.perf_counter()
        normal, gradient = (J.T @ J).tocsc(), J.T @ r.numpy()
        fit.gradient = float(np.abs(gradient).max())
        scaled = normal + scipy.sparse.diags_array(damping * normal.diagonal(), format="csc")
        step = splu(scaled, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0).solve(-gradient)
        fit.seconds["solve"] += time.perf_counter() - begin
        begin = time.perf_counter()
        ahead = residual(fit.x + torch.from_numpy(step))
        fit.seconds["residual"] += time.perf_counter() - begin
        cost = 0.5 * ahead.square().sum().item()
        if cost >= fit.costs[-1]:
            damping *= 10
            if damping > 1e6:
                break
            continue
        fit.x, r, damping = fit.x + torch.from_numpy(step), ahead, max(damping / 10, 1e-12)
        fit.costs.append(cost)
        if fit.costs[-2] - cost < 1e-9 * cost:
            break
    return fit


def by_colors(residual: Residual, x: Tensor) -> tuple[Jacobian, SparseDerivative]:
    """Jacobians in SciPy's layout, prepared once."""
    prepared = prepare_jacobian(residual, x)
    return lambda point: prepared(point, layout="scipy")[1], prepared


def by_differences(residual: Residual, prepared: SparseDerivative) -> Jacobian:
    """One Jacobian by SciPy's two-point differences, which are told the pattern and group the columns themselves."""
    pattern = prepared.colored.pattern
    ones = scipy.sparse.csr_array((np.ones(pattern.nnz), pattern.indices, pattern.indptr), shape=pattern.shape)

    def jacobian(point: Tensor) -> scipy.sparse.csr_array:
        return scipy.optimize.least_squares(
            lambda x: residual(torch.from_numpy(x)).numpy(), point.numpy(), "2-point", jac_sparsity=ones, max_nfev=1
        ).jac

    return jacobian


def by_rows(residual: Residual) -> Jacobian:
    """Dense, by `torch.func.jacrev` in chunks."""
    dense = torch.func.jacrev(residual, chunk_size=256)
    return lambda point: scipy.sparse.csr_array(dense(point).numpy())


def times(sizes: tuple[int, ...], dense: int) -> dict[str, dict[int, float]]:
    """Seconds for one Jacobian by number of unknowns and way, the least of seven after a first; dense up to a size."""
    found: dict[str, dict[int, float]] = {"dense": {}, "differences": {}, "by colors": {}}
    for poses in sizes:
        data = survey(poses)
        residual, x = residual_of(data), data.truth.reshape(-1)
        ours, prepared = by_colors(residual, x)
        ways = {"by colors": ours, "differences": by_differences(residual, prepared)}
        for name, jacobian in (ways | {"dense": by_rows(residual)} if poses <= dense else ways).items():
            seconds = []
            for _ in range(8):
                begin = time.perf_counter()
                jacobian(x)
                seconds.append(time.perf_counter() - begin)
            found[name][x.numel()] = min(seconds[1:])
    return found


@dataclass
class Result:
    """The map before and after, its mean errors, and the times."""

    data: Survey
    fit: Fit
    before: float
    after: float
    times: dict[str, dict[int, float]]


def draw(result: Result, path: Path) -> None:
    """The path by odometry, the path that fits best, and what a Jacobian takes."""
    figure, (left, middle, right) = panels((1, 1, 1), 3.4)
    fitted = result.fit.x.reshape(-1, 3)
    for axes, poses, color, title in (
        (left, result.data.odometry, ORANGE, f"odometry: off by {result.before:.2f}"),
        (middle, fitted, BLUE, f"least squares: off by {result.after:.2f}"),
    ):
        axes.plot(*result.data.truth[:, :2].T, color=GRAY, linewidth=2.5, alpha=0.35)
        axes.plot(*poses[:, :2].T, color=color, linewidth=0.7)
        style(axes, title, "x, blocks", "y, blocks")
        axes.set_aspect("equal")
    for (name, seconds), color in zip(result.times.items(), (ORANGE, GREEN, BLUE), strict=True):
        right.loglog(list(seconds), list(seconds.values()), "o-", color=color, markersize=4)
        last = (list(seconds)[-1], list(seconds.values())[-1])
        right.annotate(name, last, (0, 6), textcoords="offset points", ha="center", color=color)
    style(right, "one Jacobian", "unknowns", "seconds")
    right.xaxis.set_minor_formatter(NullFormatter())
    right.margins(x=0.25, y=0.1)
    save(figure, path)


def main(path: Path, poses: int = POSES, sizes: tuple[int, ...] = (100, 300, 1_000, 3_000), dense: int = 300) -> Result:
    """Drive, fit, print a table, draw the figure."""
    data = survey(poses)
    residual, first = residual_of(data), data.odometry.reshape(-1)
    begin = time.perf_counter()
    jacobian, prepared = by_colors(residual, first)
    prepared_in = time.perf_counter() - begin
    fit = levenberg_marquardt(residual, jacobian, first)
    print(prepared.colored)
    print(f"pattern and colors in {prepared_in:.2f} s, then {len(fit.costs) - 1} steps: " +
          ", ".join(f"{name} {seconds:.2f} s" for name, seconds in fit.seconds.items()))  # fmt: skip
    print("cost: " + ", ".join(f"{cost:.1f}" for cost in fit.costs))
    before, after = ((guess - data.truth)[:, :2].norm(dim=1).mean().item() for guess in (data.odometry, fit.x.reshape(-1, 3)))
    print(f"mean distance from the truth: {before:.3f} blocks by odometry, {after:.3f} after the fit")
    measured = times(sizes, dense)
    print(f"{'one Jacobian':>14}" + "".join(f"{name:>14}" for name in measured))
    for n in measured["by colors"]:
        cells = (f"{way[n] * 1e3:11.2f} ms" if n in way else f"{'-':>14}" for way in measured.values())
        print(f"{n:14,}" + "".join(cells))
    result = Result(data, fit, before, after, measured)
    draw(result, path)
    return result


if __name__ == "__main__":
    main(destination("sparse_least_squares.png"))
