"""Figures of the report: matplotlib figures that are returned, never shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from hesse.report.style import BLUE, FONT, GRID, INK, MUTED, ORANGE, height_of, name_rows, new_figure

_MARKER_SIZES = {"o": 5.5, "D": 4.5, "|": 9}


@dataclass(frozen=True)
class Series:
    """One kind of mark of a dot plot: its name in the legend, one value a row, color and marker."""

    label: str
    values: list[float]
    color: str
    marker: str


def dots_by_name(names: list[str], series: Sequence[Series], label: str) -> Figure:
    """Values by name on a logarithmic axis; what is not positive and finite stands at the left edge."""
    figure, axes = new_figure(height_of(len(names)) + 0.35)
    positive = [v for s in series for v in s.values if math.isfinite(v) and v > 0]
    low, high = (min(positive), max(positive)) if positive else (1e-16, 1.0)
    floor = 10 ** (math.floor(math.log10(low)) - 0.5)
    rows = np.arange(len(names))
    for s in series:
        placed = [v if math.isfinite(v) and v > 0 else (floor if v <= 0 else 1.0) for v in s.values]
        (marks,) = axes.plot(placed, rows, linestyle="none", marker=s.marker, color=s.color, label=s.label)
        marks.set(markersize=_MARKER_SIZES[s.marker], markeredgewidth=2 if s.marker == "|" else 0)
    axes.set_xscale("log")
    axes.set_xlim(floor, max(10 ** math.ceil(math.log10(high) + 0.2), 1e-2))
    name_rows(axes, names)
    axes.set_xlabel(label)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    columns = 2 if sum(len(s.label) for s in series) > 42 else len(series)
    figure.legend(
        loc="outside upper left", ncols=columns, frameon=False, fontsize=FONT - 0.5, labelcolor=INK, handletextpad=0.2,
        columnspacing=1.0,
    )
    return figure


def bars_by_name(names: list[str], values: list[float], color: str, label: str) -> Figure:
    """Horizontal bars on a logarithmic axis, in the given order from top to bottom; zero has no bar."""
    figure, axes = new_figure(height_of(len(names)))
    positive = [v for v in values if v > 0]
    low, high = (min(positive), max(positive)) if positive else (0.1, 1.0)
    floor = 10 ** math.floor(math.log10(low) - 0.15)
    axes.barh(range(len(names)), [max(v, floor) for v in values], left=0, color=color, height=0.68)
    axes.set_xscale("log")
    axes.set_xlim(floor, high * 1.6)
    name_rows(axes, names)
    axes.set_xlabel(f"{label} (log scale)")
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    return figure


def log_histogram(values: list[float], label: str, counted: str, mark: float, mark_label: str) -> Figure:
    """Histogram on a logarithmic axis, with one marked value; values that are zero are counted in a remark."""
    figure, axes = new_figure(2.7)
    positive = np.asarray([v for v in values if v > 0])
    if len(positive) == 0:
        axes.text(0.5, 0.5, "all zero", color=INK, ha="center", transform=axes.transAxes)
        return figure
    low, high = positive.min(), positive.max()
    if high / low < 1.01:
        low, high = low / 1.1, high * 1.1
    bins = np.geomspace(low, high, max(8, min(40, int(2 * len(positive) ** 0.5))))
    axes.hist(positive, bins=bins, color=BLUE, edgecolor="none", rwidth=0.92)
    axes.set_xscale("log")
    if mark > 0:
        axes.axvline(mark, color=ORANGE, linewidth=1.4)
        axes.text(mark, 1.02, f"{mark_label} {mark:.2g}", color=INK, ha="center", transform=axes.get_xaxis_transform())
    zeros = len(values) - len(positive)
    axes.set_xlabel(label + (f" ({zeros} that are zero left out)" if zeros else ""))
    axes.set_ylabel(counted)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    return figure


def cumulative_share(values: list[float], label: str, share_label: str) -> Figure:
    """How much of the sum of squares the largest so many percent hold."""
    figure, axes = new_figure(2.7)
    squares = np.sort(np.square(values))[::-1]
    total = squares.sum()
    shares = np.concatenate([[0.0], np.cumsum(squares) / total if total > 0 else np.linspace(0, 1, len(squares) + 1)[1:]])
    percent = np.linspace(0, 100, len(shares))
    axes.fill_between(percent, 100 * shares, color=BLUE, alpha=0.18, linewidth=0)
    axes.plot(percent, 100 * shares, color=BLUE, linewidth=1.8)
    axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 103)
    axes.set_xlabel(label)
    axes.set_ylabel(share_label)
    axes.grid(color=GRID, linewidth=0.6)
    return figure


def stems(values: list[float], errors: list[float], label: str, value_label: str) -> Figure:
    """Values by rank as stems from zero, with error bars; negative ones in another color."""
    figure, axes = new_figure(2.9)
    ranks = np.arange(1, len(values) + 1)
    colors = [BLUE if v >= 0 else ORANGE for v in values]
    axes.vlines(ranks, 0, values, colors=colors, linewidth=2.2)
    axes.errorbar(ranks, values, yerr=errors, fmt="none", ecolor=INK, elinewidth=1, capsize=3)
    axes.scatter(ranks, values, c=colors, s=34, zorder=3, linewidths=0)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xlabel(label)
    axes.set_ylabel(value_label)
    axes.set_xticks(ranks if len(ranks) <= 12 else ranks[:: math.ceil(len(ranks) / 8)])
    axes.set_xlim(0.4, len(values) + 0.6)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    return figure


def falling_curve(steps: list[float], values: list[float], label: str, value_label: str) -> Figure:
    """Values over steps, both on logarithmic axes; what is not positive and finite is left out."""
    figure, axes = new_figure(2.9)
    shown = [(h, v) for h, v in zip(steps, values, strict=True) if math.isfinite(v) and v > 0]
    axes.set_xscale("log")
    axes.set_yscale("log")
    if shown:
        axes.plot([h for h, _ in shown], [v for _, v in shown], color=BLUE, marker="o", markersize=4, linewidth=1.4)
        low, high = min(v for _, v in shown), max(v for _, v in shown)
        axes.set_ylim(min(low / 3, 1e-8), max(high * 3, 10))
    axes.set_xlabel(label)
    axes.set_ylabel(value_label)
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_major_locator(LogLocator(numticks=7))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.grid(color=GRID, linewidth=0.6)
    return figure


def heat_map(matrix: list[list[float]], labels: list[int] | None) -> Figure:
    """A matrix of cosines, with lines between groups of equal labels.

    Where all are positive, the colors run from the smallest to 1; else from -1 to 1 with white at zero.
    """
    figure, axes = new_figure(3.6)
    array = np.asarray(matrix)
    positive = array.min() >= 0
    low = min(math.floor(10 * array.min()) / 10, 0.9) if positive else -1
    image = axes.imshow(array, cmap="viridis" if positive else "RdBu_r", vmin=low, vmax=1, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label("cosine", color=INK, fontsize=FONT)
    bar.ax.tick_params(colors=INK, labelsize=FONT - 0.5, length=2)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    if labels is None:
        axes.set_xlabel("sample")
        axes.set_ylabel("sample")
    else:
        _mark_groups(axes, labels, "#ffffff" if positive else "#000000")
    return figure


def _mark_groups(axes: Axes, labels: list[int], color: str) -> None:
    starts = [i for i in range(len(labels)) if i == 0 or labels[i] != labels[i - 1]]
    ends = [*starts[1:], len(labels)]
    for start in starts[1:]:
        axes.axhline(start - 0.5, color=color, linewidth=0.6, alpha=0.7)
        axes.axvline(start - 0.5, color=color, linewidth=0.6, alpha=0.7)
    step = math.ceil(len(starts) / 20)
    middles = [(a + b - 1) / 2 for a, b in zip(starts, ends, strict=True)][::step]
    names = [str(labels[start]) for start in starts][::step]
    axes.set_xticks(middles, names)
    axes.set_yticks(middles, names)
    axes.set_xlabel("label of the sample")
    axes.set_ylabel("label of the sample")
    axes.tick_params(length=0)
