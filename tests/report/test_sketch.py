"""Curves in block characters."""

from __future__ import annotations

from hesse.report.sketch import at_columns, log_sketch, under_axis


def test_heights_are_logarithmic_from_low_to_high() -> None:
    assert log_sketch([0.0, 0.1, 1.0, 10.0, 100.0], 0.1, 100.0, rows=3) == ["    █", "   ██", "  ███"]
    assert log_sketch([10**-0.5], 0.1, 1.0, rows=1) == ["▄"]
    assert log_sketch([1000.0, 1e-9], 0.1, 1.0, rows=1) == ["█ "]


def test_columns_keep_the_largest_of_their_part() -> None:
    assert at_columns([1, 5, 2, 3, 0, 4], 3) == [5, 3, 4]
    assert at_columns([1, 2], 4) == [1, 1, 2, 2]


def test_the_axis_is_as_wide_as_the_lines() -> None:
    assert under_axis(["abcdef"], "-1", "20") == ["abcdef", "──────", "-1  20"]
