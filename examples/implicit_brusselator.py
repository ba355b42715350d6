"""Turing patterns of the Brusselator: a stiff reaction and diffusion, in implicit steps with sparse Jacobians.

Run it with::

    python examples/implicit_brusselator.py [FIGURE]

Two substances react and diffuse on a periodic square (Prigogine, Lefever 1968), ``u' = A - (B + 1) u + u² v + a Δu`` and
``v' = B u - u² v + b Δv``. Diffusion makes them stiff, so each step is implicit: TR-BDF2, of second order and L-stable,
with its embedded error estimate (Bank et al. 1985; Hosea, Shampine 1996). Its stages are solved by Newton's method with one
sparse factorization a step. The Jacobian's pattern and colors are found once, then every Jacobian takes a product a color.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scipy.linalg
import scipy.sparse
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.sparse.linalg import splu
from torch import Tensor

from drawing import BLUE, GRAY, INK, ORANGE, destination, save, style
from hesse import ColoredPattern, prepare_jacobian

A, B, A_DIFFUSION, B_DIFFUSION, SPACING = 4.5, 8.0, 1.0, 8.0, 0.5
SIDE, TIMES = 64, (0.0, 3.0, 6.0, 30.0)
TOLERANCE = 1e-3
GAMMA = 2 - 2**0.5
D, W = GAMMA / 2, 2**0.5 / 4
ERROR_WEIGHTS = ((1 - W) / 3 - W, (3 * W + 1) / 3 - W, D / 3 - D)  # third order less second
Array = NDArray[np.float64]
Rate = Callable[[Tensor], Tensor]
Solve = Callable[[Tensor], Tensor]  # with I - scale J


def brusselator(side: int) -> Rate:
    """The time derivative of both substances on a square of so many points along an edge: ``[2 side²] -> [2 side²]``."""

    def laplacian(u: Tensor) -> Tensor:
        around = torch.roll(u, 1, 0) + torch.roll(u, -1, 0) + torch.roll(u, 1, 1) + torch.roll(u, -1, 1)
        return (around - 4 * u) / SPACING**2

    def rate(y: Tensor) -> Tensor:
        u, v = y.reshape(2, side, side)
        reaction = u**2 * v
        du = A - (B + 1) * u + reaction + A_DIFFUSION * laplacian(u)
        dv = B * u - reaction + B_DIFFUSION * laplacian(v)
        return torch.stack([du, dv]).reshape(-1)

    return rate


def start(side: int) -> Tensor:
    """The homogeneous equilibrium, disturbed by a tenth: ``[2 side²]``."""
    noise = torch.randn(2, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return (torch.tensor([A, B / A], dtype=torch.float64)[:, None, None] * (1 + 0.1 * noise)).reshape(-1)


@dataclass
class Work:
    """Seconds and calls by what they were spent on."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Count the time of a block."""
        begin = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - begin
        self.calls[name] += 1


class SparseWay:
    """Jacobians by colors in SciPy's layout, and SuperLU."""

    def __init__(self, rate: Rate, y: Tensor, work: Work) -> None:
        self._work = work
        with work.on("pattern and colors"):
            self.jacobian = prepare_jacobian(rate, y)
        self._identity = scipy.sparse.eye_array(y.numel(), format="csc")

    def linearize(self, y: Tensor) -> scipy.sparse.csc_array:
        """The Jacobian at a point, in compressed columns."""
        with self._work.on("Jacobian"):
            return self.jacobian(y, layout="scipy")[1].tocsc()

    def factorize(self, J: scipy.sparse.csc_array, scale: float) -> Solve:
        """Solves with ``I - scale J``."""
        with self._work.on("factorization"):
            factors = splu(self._identity - scale * J, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.01)
        return lambda b: torch.from_numpy(factors.solve(b.numpy()))


class DenseWay:
    """Jacobians by `torch.func.jacrev`, and LAPACK."""

    def __init__(self, rate: Rate, y: Tensor, work: Work) -> None:
        self._work, self._jacobian = work, torch.func.jacrev(rate, chunk_size=256)

    def linearize(self, y: Tensor) -> Tensor:
        """The Jacobian at a point."""
        with self._work.on("Jacobian"):
            return self._jacobian(y)

    def factorize(self, J: Tensor, scale: float) -> Solve:
        """Solves with ``I - scale J``."""
        with self._work.on("factorization"):
            factors = torch.linalg.lu_factor(torch.eye(len(J), dtype=J.dtype) - scale * J)
        return lambda b: torch.linalg.lu_solve(*factors, b[:, None])[:, 0]


def newton(rate: Rate, known: Tensor, scale: float, guess: Tensor, solve: Solve, work: Work) -> Tensor | None:
    """The z with ``z = known + scale rate(z)``, to a hundredth of the tolerance; None where that takes over six steps."""
    z = guess
    for _ in range(6):
        with work.on("function"):
            residual = z - known - scale * rate(z)
        with work.on("solves"):
            change = solve(residual)
        z = z - change
        if size_of(change, z) < 0.01:
            return z
    return None


def size_of(difference: Tensor, y: Tensor) -> float:
    """Root mean square, in units of the tolerance."""
    return (difference / (TOLERANCE * (1 + y.abs()))).square().mean().sqrt().item()


def trbdf2(rate: Rate, y: Tensor, h: float, solve: Solve, work: Work) -> tuple[Tensor, Tensor] | None:
    """One step: a trapezoidal rule over a part, then a backward difference over the whole; the state and its error."""
    first = rate(y)
    known = y + D * h * first
    middle = newton(rate, known, D * h, y + GAMMA * h * first, solve, work)
    if middle is None:
        return None
    second = (middle - known) / (D * h)
    known = y + W * h * (first + second)
    end = newton(rate, known, D * h, y + h * second, solve, work)
    if end is None:
        return None
    slopes = first, second, (end - known) / (D * h)
    error = h * sum(weight * slope for weight, slope in zip(ERROR_WEIGHTS, slopes, strict=True))
    return end, solve(error)  # the solve damps what is stiff in the estimate


@dataclass
class Solution:
    """States at the times that were asked for, and the accepted steps."""

    states: list[Tensor]
    ends: list[float]
    sizes: list[float]


def integrate(rate: Rate, y: Tensor, times: tuple[float, ...], way: SparseWay | DenseWay, work: Work) -> Solution:
    """From the first of the times to the last, in steps that keep the error within the tolerance."""
    t, h, found = times[0], 0.01, Solution([y], [], [])
    for end in times[1:]:
        while t < end:
            J = way.linearize(y)
            while True:
                step = min(h, end - t)
                result = trbdf2(rate, y, step, way.factorize(J, D * step), work)
                error = size_of(result[1], result[0]) if result else 8.0
                h = step * min(3.0, max(0.2, 0.9 * max(error, 1e-10) ** (-1 / 3)))
                if result and error <= 1:
                    break
            t, y = t + step, result[0]
            found.ends.append(t)
            found.sizes.append(step)
        found.states.append(y)
    return found


@dataclass
class Result:
    """What the figure shows, and what the table says."""

    solution: Solution
    work: Work
    colored: ColoredPattern
    sparse_steps: dict[int, float]
    dense_steps: dict[int, float]
    difference: float


def seconds_a_step(way: type[SparseWay | DenseWay], side: int) -> float:
    """Of one implicit step, its Jacobian and factorization, when everything that is found once is there; least of seven."""
    rate, y, work = brusselator(side), start(side), Work()
    made, times = way(rate, y, work), []
    for _ in range(8):
        begin = time.perf_counter()
        trbdf2(rate, y, 0.01, made.factorize(made.linearize(y), D * 0.01), work)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def difference_from_scipy(side: int = 12, end: float = 2.0) -> float:
    """The largest difference from `scipy.integrate.solve_ivp` at a tolerance of 1e-8, which takes the same Jacobians."""
    rate, y, work = brusselator(side), start(side), Work()
    way = SparseWay(rate, y, work)
    ours = integrate(rate, y, (0.0, end), way, work).states[-1]

    def slopes(_: float, state: Array) -> Array:
        return rate(torch.from_numpy(state)).numpy()

    def jacobian(_: float, state: Array) -> scipy.sparse.csc_array:
        return way.linearize(torch.from_numpy(state))

    exact = solve_ivp(slopes, (0.0, end), y.numpy(), "Radau", jac=jacobian, rtol=1e-8, atol=1e-8).y[:, -1]
    return float(np.abs(ours.numpy() - exact).max())


def draw(result: Result, side: int, path: Path) -> None:
    """Above: one substance over time. Below: a small grid's pattern and its colors, the steps, and what a step costs."""
    figure = Figure(figsize=(9, 5.6), layout="constrained", facecolor="white")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.3))
    images = above.subplots(1, len(TIMES))
    fields = [state.reshape(2, side, side)[0].numpy() for state in result.solution.states]
    lowest, highest = min(u.min() for u in fields[1:]), max(u.max() for u in fields[1:])
    for axes, u, t in zip(images, fields, TIMES, strict=True):
        shown = axes.imshow(u, cmap="cividis", vmin=lowest, vmax=highest, interpolation="bilinear")
        axes.set_title(f"t = {t:g}", loc="left", fontsize=10.5, color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
    above.colorbar(shown, ax=list(images), label="u", shrink=0.85)
    pattern, steps, cost = below.subplots(1, 3)
    result.colored.plot(pattern)
    pattern.set_title("")
    if legend := pattern.get_legend():
        legend.remove()
    style(pattern, f"5 x 5 points: {result.colored.colors} colors", "column", "row")
    pattern.grid(False)
    limit = 2 * SPACING**2 / (8 * B_DIFFUSION)
    steps.axhline(limit, color=GRAY, linewidth=1, linestyle="--")
    steps.annotate("limit of explicit Euler", (TIMES[-1], limit), (0, 4), textcoords="offset points", ha="right", color=GRAY)
    steps.plot(result.solution.ends, result.solution.sizes, color=BLUE)
    steps.set_yscale("log")
    style(steps, "steps", "time t", "step size")
    for times, color, name in ((result.dense_steps, ORANGE, "dense"), (result.sparse_steps, BLUE, "sparse")):
        cost.loglog(list(times), list(times.values()), "o-", color=color, markersize=4)
        cost.annotate(name, (list(times)[-1], list(times.values())[-1]), (4, 4), textcoords="offset points", color=color)
    cost.margins(x=0.2, y=0.12)
    style(cost, "one implicit step", "unknowns", "seconds")
    save(figure, path)


def main(
    path: Path,
    side: int = SIDE,
    sparse_sides: tuple[int, ...] = (16, 24, 32, 48, 64),
    dense_sides: tuple[int, ...] = (16, 24, 32),
) -> Result:
    """Integrate, print tables, draw the figure."""
    work, rate, y = Work(), brusselator(side), start(side)
    begin = time.perf_counter()
    way = SparseWay(rate, y, work)
    solution = integrate(rate, y, TIMES, way, work)
    total = time.perf_counter() - begin
    print(way.jacobian.colored)
    print(f"{y.numel():,} unknowns, {len(solution.sizes)} steps, {total:.1f} s")
    for name, seconds in work.seconds.items():
        print(f"  {name:20}{work.calls[name]:6} calls{seconds:9.3f} s{seconds / total:7.1%}")
    sparse_steps = {2 * s * s: seconds_a_step(SparseWay, s) for s in sparse_sides}
    dense_steps = {2 * s * s: seconds_a_step(DenseWay, s) for s in dense_sides}
    print(f"{'unknowns':>9}{'dense step':>12}{'sparse step':>13}{'ratio':>8}")
    for n, seconds in dense_steps.items():
        print(f"{n:9,}{seconds * 1e3:9.1f} ms{sparse_steps[n] * 1e3:10.1f} ms{seconds / sparse_steps[n]:8.1f}")
    difference = difference_from_scipy()
    print(f"largest difference from solve_ivp (Radau, 1e-8) on a small grid: {difference:.1e}")
    colored = prepare_jacobian(brusselator(5), start(5)).colored
    result = Result(solution, work, colored, sparse_steps, dense_steps, difference)
    draw(result, side, path)
    return result


if __name__ == "__main__":
    main(destination("implicit_brusselator.png"))
