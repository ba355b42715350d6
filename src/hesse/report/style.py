"""The one look that all figures share.

Figures are 4.3 inches wide, so that their text stays readable on a phone. Ink and grid are drawn in two reserved colors,
which the page replaces by its own, so that a figure follows the page into dark mode.
"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

INK, GRID = "#1c2330", "#d9dee7"  # replaced in the page, see hesse.report.pictures
BLUE, ORANGE, MUTED = "#3b76d1", "#dd7a1f", "#8792a5"
WIDTH, FONT = 4.3, 9.2


def new_figure(height: float) -> tuple[Figure, Axes]:
    """A transparent figure of this height in inches, with one pair of axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(INK)
        axes.spines[side].set_linewidth(0.7)
    axes.tick_params(colors=INK, labelsize=FONT, length=3, width=0.7)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=INK, fontsize=FONT)
    return figure, axes


def height_of(rows: int) -> float:
    """Inches for so many named rows."""
    return 0.75 + 0.2 * max(rows, 3)


def name_rows(axes: Axes, names: list[str]) -> None:
    """Names along the vertical axis from top to bottom, long ones cut in front; a logarithmic horizontal axis."""
    name_rows_linearly(axes, names)
    axes.xaxis.set_major_locator(LogLocator(numticks=7))
    axes.xaxis.set_minor_formatter(NullFormatter())


def name_rows_linearly(axes: Axes, names: list[str]) -> None:
    """Names along the vertical axis from top to bottom, long ones cut in front; the horizontal axis as it is."""
    axes.set_yticks(range(len(names)), [name if len(name) <= 26 else "..." + name[-24:] for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
