"""What the figures of the examples share: colors, axes, and where they are written."""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GRAY = "#3b76d1", "#dd7a1f", "#2e8b57", "#6b7688"
INK, GRID = "#1c2330", "#e3e7ee"


def style(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, labels of both axes, a light grid."""
    axes.set_title(title, loc="left", fontsize=10.5, color=INK)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def panels(widths: tuple[float, ...] = (1.0, 1.0), height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """A white figure, 9 inches wide, with panels of these relative widths side by side."""
    figure = Figure(figsize=(9, height), layout="constrained", facecolor="white")
    row = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    return figure, list(row)


def destination(name: str) -> Path:
    """The path given on the command line, else `name` in the working directory."""
    return Path(sys.argv[1]) if len(sys.argv) > 1 else Path(name)


def save(figure: Figure, path: Path) -> None:
    """Write the figure, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    print(f"figure: {path}")
