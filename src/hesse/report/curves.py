"""Figures of curvature: densities with error bands, curves with error bars, pairs of bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from hesse.report.style import FONT, GRID, INK, MUTED, height_of, name_rows_linearly, new_figure

_BAND = 2  # standard errors to either side
_SHORTEST = 4e-3  # error bar that is drawn, as a part of the largest value


@dataclass(frozen=True)
class Measured:
    """Numbers with their standard errors, the label of the legend, and a color."""

    label: str
    values: list[float]
    errors: list[float]
    color: str


def densities(grid: list[float], series: Sequence[Measured], floor: float, label: str, value_label: str) -> Figure:
    """Curves over a linear axis, values on a logarithmic one cut at `floor`, with bands of two standard errors."""
    figure, axes = new_figure(3.3)
    x = np.asarray(grid)
    for s in series:
        y, error = np.asarray(s.values), np.asarray(s.errors)
        lower, upper = np.maximum(y - _BAND * error, floor), np.maximum(y + _BAND * error, floor)
        axes.fill_between(x, floor, np.maximum(y, floor), color=s.color, alpha=0.1, linewidth=0)
        axes.fill_between(x, lower, upper, color=s.color, alpha=0.25, linewidth=0)
        axes.plot(x, np.maximum(y, floor / 1e6), color=s.color, linewidth=1.2, label=s.label)
    axes.set_yscale("log")
    top = max((max(s.values) for s in series), default=1.0)
    axes.set_ylim(floor, max(3 * top, 10 * floor))
    axes.set_xlim(x[0], x[-1])
    if x[0] < 0 < x[-1]:
        axes.axvline(0, color=INK, linewidth=0.7, linestyle=(0, (4, 3)))
    axes.set_xlabel(label)
    axes.set_ylabel(value_label)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(LogLocator(numticks=7))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color=GRID, linewidth=0.6)
    _legend(figure, len(series))
    return figure


def pairs_by_rank(series: Sequence[Measured], label: str, value_label: str) -> Figure:
    """Values by rank, the bars of a rank side by side, with error bars."""
    figure, axes = new_figure(3.1)
    width = 0.8 / len(series)
    for place, s in enumerate(series):
        ranks = np.arange(1, len(s.values) + 1) - 0.4 + width * (place + 0.5)
        axes.bar(ranks, s.values, width * 0.92, color=s.color, label=s.label)
        seen = _visible(s, 1.0)
        axes.errorbar(ranks, s.values, yerr=seen, fmt="none", ecolor=INK, elinewidth=0.9, capsize=2)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xlabel(label)
    axes.set_ylabel(value_label)
    axes.set_xticks(range(1, max(len(s.values) for s in series) + 1))
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    _legend(figure, len(series))
    return figure


def log_curve(steps: list[float], s: Measured, ceiling: float, ceiling_label: str, labels: tuple[str, str]) -> Figure:
    """A curve on logarithmic axes with error bars, and a dashed line at its ceiling; `labels`: of both axes."""
    figure, axes = new_figure(3.1)
    x, y, error = np.asarray(steps), np.asarray(s.values), np.asarray(s.errors)
    shown = y > 0
    axes.set_xscale("log")
    axes.set_yscale("log")
    if shown.any():
        x, y, error = x[shown], y[shown], error[shown]
        bars = np.stack([np.minimum(_BAND * error, 0.9 * y), _BAND * error])
        axes.errorbar(x, y, yerr=bars, color=s.color, marker="o", markersize=4, linewidth=1.5, elinewidth=1, capsize=3)
        axes.set_ylim(y.min() / 2, 2.2 * max(ceiling, y.max()))
    axes.axhline(ceiling, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.text(0.985, ceiling / 1.12, ceiling_label, color=INK, fontsize=FONT - 0.5, ha="right", va="top",
              transform=axes.get_yaxis_transform())
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    _log_ticks(axes)
    axes.grid(color=GRID, linewidth=0.6)
    return figure


def pairs_by_name(names: list[str], series: Sequence[Measured], label: str, remarks: Sequence[str]) -> Figure:
    """Horizontal bars by name on a linear axis from zero, those of a name one below the other, with error bars.

    A remark stands in the place of bars too short to be seen.
    """
    figure, axes = new_figure(height_of(len(names)) + 0.06 * len(names) + 0.35)
    height = 0.76 / len(series)
    for place, s in enumerate(series):
        rows = np.arange(len(names)) - 0.38 + height * (place + 0.5)
        axes.barh(rows, s.values, height * 0.92, color=s.color, label=s.label)
        axes.errorbar(s.values, rows, xerr=_visible(s, _BAND), fmt="none", ecolor=INK, elinewidth=0.9, capsize=1.5)
    name_rows_linearly(axes, names)
    ends = [v + _BAND * e for s in series for v, e in zip(s.values, s.errors, strict=True)]
    widest = 1.05 * max(ends, default=1.0) or 1.0
    axes.set_xlim(0, widest)
    for row, remark in enumerate(remarks):
        if max(s.values[row] for s in series) < _SHORTEST * widest:
            axes.text(0.01, row, remark, color=MUTED, fontsize=FONT - 1, va="center", transform=axes.get_yaxis_transform())
    axes.set_xlabel(label)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    _legend(figure, len(series))
    return figure


def _visible(s: Measured, times: float) -> np.ndarray:
    """Error bars, without those that are too short to be seen."""
    bars = times * np.asarray(s.errors, dtype=float)
    largest = max(map(abs, s.values), default=0.0)
    return np.where(bars > _SHORTEST * largest, bars, np.nan)


def _log_ticks(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(numticks=8))
        axis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, columns: int) -> None:
    figure.legend(
        loc="outside upper left", ncols=columns, frameon=False, fontsize=FONT - 0.5, labelcolor=INK, handlelength=1.2,
        columnspacing=1.2,
    )
