"""Figures of curvature draw what they are given, also where it is awkward."""

from __future__ import annotations

import numpy as np
import pytest

from hesse.report import curves
from hesse.report.curves import Measured
from hesse.report.pictures import inline_svg, png_of_figure
from hesse.report.style import BLUE, ORANGE


def test_densities_have_their_curves_and_bands() -> None:
    grid = [-1.0, 0.0, 1.0]
    series = [Measured("one", [0.5, 10.0, 0.0], [0.1, 1.0, 0.0], BLUE), Measured("two", [1.0, 1.0, 1.0], [0.0] * 3, ORANGE)]
    figure = curves.densities(grid, series, 0.03, "eigenvalue", "count")
    axes = figure.axes[0]
    assert axes.lines[0].get_ydata()[:2] == pytest.approx([0.5, 10.0])
    band = axes.collections[1].get_paths()[0].vertices
    assert {round(y, 6) for x, y in band if x == 0.0} >= {8.0, 12.0}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]
    assert axes.get_yscale() == "log"


def test_pairs_by_rank_stand_side_by_side() -> None:
    series = [Measured("a", [3.0, 1.0], [0, 0], BLUE), Measured("b", [2.0, -1.0], [0, 0], ORANGE)]
    axes = curves.pairs_by_rank(series, "rank", "value").axes[0]
    assert [bar.get_height() for bar in axes.patches] == [3, 1, 2, -1]
    left = [bar.get_x() for bar in axes.patches]
    assert left[0] < left[2] < left[1] < left[3]


def test_a_log_curve_shows_two_standard_errors_and_its_ceiling() -> None:
    axes = curves.log_curve([0.1, 1.0], Measured("", [10.0, 4.0], [1.0, 0.5], BLUE), 20, "all 20", ("x", "y")).axes[0]
    (segments,) = (c.get_segments() for c in axes.collections)
    assert [list(segment[:, 1]) for segment in segments] == [[8.0, 12.0], [3.0, 5.0]]
    assert axes.texts[0].get_text() == "all 20"
    assert axes.get_ylim()[1] > 20


def test_pairs_by_name_have_remarks_where_no_bar_is_seen() -> None:
    series = [Measured("a", [0.5, 1e-7], [0.1, 1e-9], BLUE), Measured("b", [0.25, 1e-7], [0.0, 0.0], ORANGE)]
    axes = curves.pairs_by_name(["first", "second"], series, "error", ["one", "exact"]).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.5, 1e-7, 0.25, 1e-7]
    assert [text.get_text() for text in axes.texts] == ["exact"]
    drawn = [s for c in axes.collections for s in c.get_segments() if np.shape(s) == (2, 2) and np.isfinite(s).all()]
    assert [list(segment[:, 0]) for segment in drawn] == [[pytest.approx(0.3), pytest.approx(0.7)]]


@pytest.mark.parametrize(
    "figure",
    [
        curves.densities([0.0, 1.0], [Measured("a", [0.0, 0.0], [0.0, 0.0], BLUE)], 0.03, "x", "y"),
        curves.pairs_by_rank([Measured("a", [0.0], [0.0], BLUE)], "x", "y"),
        curves.log_curve([1.0], Measured("", [0.0], [0.0], BLUE), 3, "all", ("x", "y")),
        curves.pairs_by_name(["a"], [Measured("a", [0.0], [0.0], BLUE)], "x", [""]),
    ],
)
def test_awkward_values_are_drawn(figure) -> None:
    assert "<path" in inline_svg(figure, "key", "what it is")
    assert png_of_figure(figure).startswith(b"\x89PNG")
