"""Curves in block characters, for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

_EIGHTHS = " ▁▂▃▄▅▆▇█"


def log_sketch(values: Sequence[float], low: float, high: float, rows: int = 4) -> list[str]:
    """Values as columns of block characters on a logarithmic scale, one line of text a row from top to bottom.

    Args:
        values: one a column; what is not positive has no column.
        low, high: the values at the bottom and at the top, both positive.
        rows: lines of text.
    """
    span = math.log(high / low) if high > low > 0 else 1.0
    heights = [min(max(math.log(v / low) / span, 0.0), 1.0) if v > 0 else 0.0 for v in values]
    return ["".join(_cell(height * rows - row) for height in heights) for row in reversed(range(rows))]


def _cell(filled: float) -> str:
    """A cell of which so much is filled from below; a sliver is drawn as one eighth."""
    return _EIGHTHS[min(max(math.ceil(8 * filled - 1e-9), 0), 8)]


def at_columns(values: Sequence[float], columns: int) -> list[float]:
    """The largest value within each of so many equal parts."""
    edges = [i * len(values) // columns for i in range(columns + 1)]
    return [max(values[start : max(stop, start + 1)]) for start, stop in pairwise(edges)]


def under_axis(lines: Sequence[str], left: str, right: str) -> list[str]:
    """The lines over an axis whose two ends are written below it."""
    width = max(len(line) for line in lines)
    return [*lines, "─" * width, left + " " * max(width - len(left) - len(right), 1) + right]
