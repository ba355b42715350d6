"""Figures draw what they are given, also where it is awkward."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hesse.report import plots
from hesse.report.pictures import inline_svg
from hesse.report.style import BLUE


def test_a_histogram_counts_every_positive_value() -> None:
    axes = plots.log_histogram([0.0, 0.0, 1, 2, 3, 50, 1000], "norm", "samples", 3, "median").axes[0]
    assert sum(patch.get_height() for patch in axes.patches) == 5
    assert "2 that are zero left out" in axes.get_xlabel()


def test_the_cumulative_share_ends_at_a_hundred() -> None:
    line = plots.cumulative_share([3.0, 4.0, 0.0, 0.0], "samples", "share").axes[0].lines[0]
    assert line.get_ydata() == pytest.approx([0, 64, 100, 100, 100])
    assert line.get_xdata() == pytest.approx([0, 25, 50, 75, 100])


def test_bars_keep_order_and_zero_has_none() -> None:
    axes = plots.bars_by_name(["first", "second", "third"], [1e-3, 0.0, 1.0], BLUE, "value").axes[0]
    widths = [patch.get_width() for patch in axes.patches]
    assert widths[0] == 1e-3
    assert widths[2] == 1.0
    assert widths[1] <= axes.get_xlim()[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["first", "second", "third"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


def test_long_names_are_cut_in_front() -> None:
    axes = plots.bars_by_name(["transformer.blocks.11.attention.projection.weight"], [1.0], BLUE, "value").axes[0]
    (label,) = axes.get_yticklabels()
    assert label.get_text().startswith("...")
    assert label.get_text().endswith("projection.weight")


def test_stems_show_values_and_errors() -> None:
    axes = plots.stems([5.0, 2.0, -1.0], [0.1, 0.2, 0.3], "rank", "value").axes[0]
    offsets = np.asarray(axes.collections[-1].get_offsets())
    assert offsets[:, 1] == pytest.approx([5, 2, -1])


@pytest.mark.parametrize("matrix", [[[1.0, 0.5], [0.5, 1.0]], [[1.0, -0.5], [-0.5, 1.0]]])
def test_a_heat_map_covers_its_values(matrix: list[list[float]]) -> None:
    image = plots.heat_map(matrix, None).axes[0].images[0]
    assert image.get_clim()[0] <= min(min(row) for row in matrix)
    assert image.get_clim()[1] == 1
    assert np.asarray(image.get_array()) == pytest.approx(np.asarray(matrix))


def test_a_heat_map_parts_the_classes() -> None:
    axes = plots.heat_map(np.eye(6).tolist(), [0, 0, 3, 3, 3, 7]).axes[0]
    assert sorted(line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1) == [1.5, 4.5]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0", "3", "7"]


@pytest.mark.parametrize(
    "figure",
    [
        plots.log_histogram([0.0, 0.0], "norm", "samples", 0.0, "median"),
        plots.log_histogram([2.0, 2.0], "norm", "samples", 2.0, "median"),
        plots.cumulative_share([0.0], "samples", "share"),
        plots.bars_by_name(["a"], [0.0], BLUE, "value"),
        plots.dots_by_name(["a", "b"], [plots.Series("s", [math.inf, math.nan], BLUE, "o")], "error"),
        plots.dots_by_name(["a"], [plots.Series("s", [0.0], BLUE, "o")], "error"),
        plots.falling_curve([1.0, 0.1], [0.0, math.nan], "step", "error"),
        plots.stems([0.0], [0.0], "rank", "value"),
        plots.heat_map([[0.0]], [4]),
    ],
)
def test_awkward_values_are_drawn(figure) -> None:
    assert "<path" in inline_svg(figure, "key", "what it is")
