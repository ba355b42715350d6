"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from hesse.report.writing import breakable, write, write_gradients, write_measured, write_seconds, write_with_error


@pytest.mark.parametrize(
    ("value", "style", "text"),
    [
        (0.0, "number", "0"), (1.0, "number", "1.000"), (123.456, "number", "123.5"), (-0.01234, "number", "-0.01234"),
        (99994.0, "number", "99994"),
        (99999.0, "number", "1.00 × 10⁵"), (123456.0, "number", "1.23 × 10⁵"), (1.5e-7, "number", "1.50 × 10⁻⁷"),
        (1.5e-7, "power", "1.5 × 10⁻⁷"), (0.000999999, "power", "0.0010"), (9.9999e-8, "power", "1.0 × 10⁻⁷"),
        (5e-320, "power", "5.0 × 10⁻³²⁰"), (math.nan, "number", "not finite"), (math.inf, "power", "∞"), (None, "number", "–"),
        (7, "count", "7"), (1234567, "count", "1\u202f234\u202f567"), (0.1234, "percent", "12.3%"),
        ([6, 1, 3], "shape", "6 × 1 × 3"), ([], "shape", "scalar"), ("ok", "verdict", "✓ ok"), ("a.b", "name", "a.b"),
    ],
)  # fmt: skip
def test_write(value: object, style: str, text: str) -> None:
    assert write(value, style) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (12.3456, 0.4, "12.3 ± 0.4"), (12.3456, 0.14, "12.35 ± 0.14"), (218.62, 9.61, "219 ± 10"),
        (-5.0, 0.0352, "-5.000 ± 0.035"),
        (123456.0, 789.0, "123500 ± 800"), (1.5e-9, 2e-11, "(1.500 ± 0.020) × 10⁻⁹"), (2.0e8, 3e6, "(2.000 ± 0.030) × 10⁸"),
        (45.1, 2.9e-5, "45.10 ± 3 × 10⁻⁵"), (0.0, 0.2, "0.00 ± 0.20"), (3.0, 0.0, "3.000"), (3.0, math.inf, "3.000"),
    ],
)  # fmt: skip
def test_write_with_error(value: float, error: float, text: str) -> None:
    assert write_with_error(value, error) == text


def test_write_seconds() -> None:
    assert [write_seconds(s) for s in (2.2e-5, 0.0123, 3.456, 125.0)] == ["22 µs", "12.3 ms", "3.46 s", "2 min 5 s"]


def test_write_gradients() -> None:
    assert [write_gradients(g) for g in (1.04, 56.7, 123.4, 12345.0)] == [
        "1.0 gradients", "57 gradients", "123 gradients", "12\u202f345 gradients",
    ]  # fmt: skip


def test_a_style_with_its_error_bar() -> None:
    assert write_measured(0.99453, 0.00023, "percent") == "99.453 ± 0.023%"
    assert write_measured(0.5, 0.0, "percent") == "50.0%"
    assert write_measured(12.34, 0.2) == "12.34 ± 0.20"


def test_names_break_behind_their_marks_and_are_escaped() -> None:
    assert breakable("a/b.py:f_<x>") == "a/<wbr>b.<wbr>py:<wbr>f_<wbr>&lt;x&gt;"
