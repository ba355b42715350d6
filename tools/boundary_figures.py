"""Draws the figures of docs/explanation/boundary_method.md, by dense matrices of small convolutions.

``python -m tools.boundary_figures`` writes them into docs/images.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn import functional as F

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
BLUE, ORANGE, GREEN, GRAY = "#3b76d1", "#dd7a1f", "#2e8b57", "#6b7688"
INK, GRID = "#1c2330", "#e3e7ee"
NO_WINDING, WINDING, BLUR = (0.0, 1.0, 0.6), (0.0, 0.6, 1.0), (0.25, 0.55, 0.2)


def matrix(weight: Tensor, size: tuple[int, ...]) -> Tensor:
    """Of the convolution with zeros beyond the border: ``[out, in]``; 1-D or 2-D."""
    n, channels = math.prod(size), weight.shape[1]
    units = torch.eye(channels * n, dtype=weight.dtype).reshape(-1, channels, *size)
    padding = tuple(k // 2 for k in weight.shape[2:])
    return (F.conv1d if len(size) == 1 else F.conv2d)(units, weight, padding=padding).flatten(1).T


def circulant(weight: Tensor, size: tuple[int, ...]) -> Tensor:
    """Of the convolution on a torus: ``[out, in]``; one channel."""
    n = math.prod(size)
    units = torch.eye(n, dtype=weight.dtype).reshape(n, 1, *size)
    padding = [k // 2 for k in reversed(weight.shape[2:]) for _ in range(2)]
    return (F.conv1d if len(size) == 1 else F.conv2d)(F.pad(units, padding, mode="circular"), weight).flatten(1).T


def style(axes: Axes, title: str, x: str = "", y: str = "") -> None:
    """Title, labels, a light grid."""
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def save(figure: Figure, name: str) -> None:
    """Write the figure, and say where."""
    path = IMAGES / f"boundary_{name}.png"
    figure.savefig(path, dpi=130)
    print(path)


def row(panels: int, height: float, widths: tuple[float, ...] | None = None) -> tuple[Figure, list[Axes]]:
    """A white figure of panels side by side."""
    figure = Figure(figsize=(9, height), layout="constrained", facecolor="white")
    return figure, list(figure.subplots(1, panels, width_ratios=widths))


def matrices(n: int = 6) -> None:
    """The matrix of a zero-padded convolution, the circulant around it, and the image on its torus."""
    weight = (torch.arange(1.0, 10.0) / 9).reshape(1, 1, 3, 3)
    figure, (left, middle, right) = row(3, 3.3)
    torus = n + 1
    inside = torch.zeros(torus, torus, dtype=torch.bool)
    inside[:n, :n] = True
    order = torch.cat([inside.flatten().nonzero()[:, 0], (~inside).flatten().nonzero()[:, 0]])
    whole = circulant(weight, (torus, torus))[order][:, order]
    for axes, M, title in (
        (left, matrix(weight, (n, n)), f"A: {n} x {n} pixels, zeros beyond"),
        (middle, whole, f"C: the torus of {torus} x {torus}, ring last"),
    ):
        axes.imshow(torch.where(M == 0, torch.nan, M).numpy(), cmap="viridis", vmin=0, vmax=1)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("pixel read", color=INK)
        axes.set_ylabel("pixel written", color=INK)
    for k in range(n, n * n, n):
        left.axhline(k - 0.5, color=GRID, linewidth=0.7)
        left.axvline(k - 0.5, color=GRID, linewidth=0.7)
    middle.axhline(n * n - 0.5, color=ORANGE, linewidth=1.2)
    middle.axvline(n * n - 0.5, color=ORANGE, linewidth=1.2)
    middle.text(n * n / 2, 4.5, "A", color=BLUE, fontsize=20, ha="left")
    _torus(right, n)
    save(figure, "matrices")


def _torus(axes: Axes, n: int) -> None:
    for r in range(n + 1):
        for c in range(n + 1):
            color = "#dbe6f7" if r < n and c < n else "#fbe3cc"
            axes.add_patch(Rectangle((c, r), 1, 1, facecolor=color, edgecolor="white"))
    for (r, c), color in (((n - 1, 2), BLUE), ((0, 0), GREEN)):
        for dr in (-1, 0, 1):
            for dc in (-1, 0, 1):
                place = (c + dc) % (n + 1), (r + dr) % (n + 1)
                axes.add_patch(Rectangle(place, 1, 1, facecolor=color, alpha=0.35, edgecolor="white"))
        axes.plot(c + 0.5, r + 0.5, "o", color=color, markersize=5)
    axes.text(3.4, 3.2, "image: z = x", color=BLUE, ha="center")
    axes.text(n + 1.15, 3.5, "ring:\nz = 0,\nC z = s", color=ORANGE, va="center")
    axes.set_xlim(-0.1, n + 2.6)
    axes.set_ylim(n + 1.1, -0.1)
    axes.set_aspect("equal")
    axes.set_title("two windows on the torus", loc="left", fontsize=10, color=INK)
    axes.set_axis_off()


def correction(n: int = 48) -> None:
    """A signal, what the circulant alone makes of its blurred version, and what the ring adds."""
    weight = torch.tensor([[BLUR]], dtype=torch.float64)
    t = torch.arange(n, dtype=torch.float64) / n
    x = 0.4 + 0.3 * torch.sin(2 * math.pi * 1.3 * t) + 0.5 * (t > 0.55)
    H = torch.linalg.inv(circulant(weight, (n + 1,)))
    y = matrix(weight, (n,)) @ x
    usual = torch.linalg.solve(circulant(weight, (n,)), y)
    alone = H[:, :n] @ y
    added = H[:, n] * (-alone[n] / H[n, n])
    figure, (left, middle, right) = row(3, 2.7)
    left.plot(x, color=GRAY, linewidth=3, alpha=0.5, label="x")
    left.plot(y, color=GREEN, linewidth=1.2, label="y = A x")
    left.plot(usual, color=ORANGE, linewidth=1.2, label="usual answer")
    style(left, "division in Fourier space", "pixel")
    middle.plot(alone, color=ORANGE, linewidth=1.2, label="H E y")
    middle.plot(added, color=BLUE, linewidth=1.2, label="H E$_B$ s")
    middle.plot(n, alone[n], "o", color=ORANGE, markersize=5)
    middle.plot(n, added[n], "o", color=BLUE, markersize=5)
    style(middle, "one unknown, s, so that the ring is 0", "cell of the torus, the ring last")
    right.plot(x, color=GRAY, linewidth=3, alpha=0.5, label="x")
    right.plot((alone + added)[:n], color=BLUE, linewidth=1.2, label="H (E y + E$_B$ s)")
    style(right, "their sum", "pixel")
    for axes in (left, middle, right):
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    save(figure, "correction")


def conditioning(n: int = 32) -> None:
    """Symbols that wind around zero or not, the singular values of their matrices, and condition numbers in two dimensions."""
    figure, (left, middle, right) = row(3, 3.0)
    angles = 2 * math.pi * torch.arange(721, dtype=torch.float64) / 720
    for taps, color, name in ((NO_WINDING, BLUE, "x[n] + 0.6 x[n + 1]"), (WINDING, ORANGE, "0.6 x[n] + x[n + 1]")):
        weight = torch.tensor(taps, dtype=torch.float64)
        symbol = sum(w * torch.exp(1j * (k - 1) * angles) for k, w in enumerate(weight))
        left.plot(symbol.real, symbol.imag, color=color, label=name)
        values = torch.linalg.svdvals(matrix(weight[None, None], (n,)))
        middle.semilogy(range(1, n + 1), values, "o", color=color, markersize=3)
        frequencies = symbol.abs().sort(descending=True).values[:: 720 // n][:n]
        middle.semilogy(range(1, n + 1), frequencies, color=color, linewidth=1, alpha=0.6)
    left.plot(0, 0, "+", color=INK, markersize=10)
    left.set_aspect("equal")
    left.legend(frameon=False, labelcolor=INK, fontsize=8, loc="upper left")
    left.set_ylim(-1.2, 2.0)
    style(left, "symbols, and zero", "real part", "imaginary part")
    style(middle, "singular values: A (dots), torus (line)", "number", "")
    _conditions(right)
    save(figure, "conditioning")


def _conditions(axes: Axes, sizes: tuple[int, ...] = (4, 6, 8, 12, 16, 20), seeds: int = 5) -> None:
    generator = torch.Generator().manual_seed(0)
    identity = torch.zeros(4, 4, 3, 3, dtype=torch.float64)
    identity[range(4), range(4), 1, 1] = 1
    kinds = {
        "random 3 x 3": (ORANGE, lambda noise: noise),
        "identity + 0.3 random": (BLUE, lambda noise: identity + 0.3 * noise / math.sqrt(36)),
    }
    for name, (color, kernel) in kinds.items():
        for _ in range(seeds):
            weight = kernel(torch.randn(4, 4, 3, 3, dtype=torch.float64, generator=generator))
            conditions = [torch.linalg.cond(matrix(weight, (n, n))).item() for n in sizes]
            axes.semilogy(sizes, conditions, "-", color=color, linewidth=1, marker="o", markersize=2.5)
        axes.plot([], [], color=color, label=name)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8, loc="center left", bbox_to_anchor=(0, 0.3))
    style(axes, "condition, 4 channels, N x N", "N", "")


def proximal(steps: int = 14) -> None:
    """Distance to the pseudo-inverse's answer by step, for several d, where a singular value is 0 and one is small."""
    torch.manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(n, 20, dtype=torch.float64)).Q for n in (30, 24))
    values = torch.logspace(0, -2, 20, dtype=torch.float64)
    values[-1] = 0
    A = U * values @ V.T
    y = torch.randn(30, dtype=torch.float64)
    exact = torch.linalg.pinv(A) @ y
    figure, (left, right) = row(2, 2.8)
    for d, color in ((1e-2, GRAY), (1e-3, GREEN), (1e-4, BLUE), (1e-6, ORANGE)):
        K = torch.cat(
            [
                torch.cat([torch.eye(30, dtype=torch.float64), A], 1),
                torch.cat([A.T, -(d**2) * torch.eye(24, dtype=torch.float64)], 1),
            ]
        )
        x, errors = torch.zeros(24, dtype=torch.float64), []
        for _ in range(steps):
            x = torch.linalg.solve(K, torch.cat([y, -(d**2) * x]))[30:]
            errors.append(((x - exact).norm() / exact.norm()).item())
        left.semilogy(range(1, steps + 1), errors, "o-", color=color, markersize=3, label=f"d = {d:g}")
    left.legend(frameon=False, labelcolor=INK, fontsize=8)
    style(left, "relative error, smallest singular values 0.013 and 0", "step", "")
    sigma = torch.logspace(-6, 0, 200, dtype=torch.float64)
    for k, color in ((1, GRAY), (2, GREEN), (4, BLUE)):
        kept = 1 - (1e-3**2 / (sigma**2 + 1e-3**2)) ** k
        right.semilogx(sigma, kept, color=color, label=f"{k} step{'s' if k > 1 else ''}")
    right.legend(frameon=False, labelcolor=INK, fontsize=8)
    style(right, "part of 1/σ that is there, d = 0.001", "singular value σ", "")
    save(figure, "proximal")


def main() -> None:
    """All of them."""
    IMAGES.mkdir(exist_ok=True)
    for draw in (matrices, correction, conditioning, proximal):
        draw()


if __name__ == "__main__":
    main()
