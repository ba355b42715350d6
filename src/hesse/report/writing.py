"""How numbers are written for people, in the page and in the terminal."""

from __future__ import annotations

import math
import os
import re
from typing import Any

from markupsafe import Markup

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_VERDICTS = {"ok": "✓ ok", "wrong": "✗ wrong", "undecided": "? undecided"}


def write(value: Any, style: str = "number") -> str:
    """A value in one of the styles: number, power, count, percent, shape, verdict, name.

    Numbers have four significant digits, powers two; both go over to powers of ten where digits would not show.
    """
    if value is None:
        return "–"
    if style in ("number", "power"):
        return _number(float(value), 4 if style == "number" else 2)
    if style == "count":
        return f"{value:,}".replace(",", "\u202f") if abs(value) >= 10_000 else str(value)
    if style == "percent":
        return f"{100 * value:.1f}%"
    if style == "shape":
        return " × ".join(str(size) for size in value) or "scalar"
    return _VERDICTS.get(value, str(value)) if style == "verdict" else str(value)


def from_here(text: str) -> str:
    """Text in which files of the working directory are called without it."""
    return text.replace(os.getcwd() + os.sep, "")


def breakable(text: str) -> Markup:
    """A path, or the name of an operation, for a page: lines may be broken behind its marks."""
    return Markup("<wbr>").join(re.split(r"(?<=[/:._])", text))


def write_with_error(value: float, error: float) -> str:
    """``12.34 ± 0.15``: the error to one or two digits, the value to the same place.

    Two digits where the error begins with 1 or 2 or 3 up to 3.54 or rounds up to 10 (Particle Data Group, section 5.3 of
    the introduction).
    """
    if not (error > 0 and math.isfinite(error) and math.isfinite(value)):
        return write(value)
    place = _last_place(error)
    exponent = math.floor(math.log10(abs(value))) if value else place
    if place < exponent - 5:  # an error that no one needs beside the value
        return f"{_number(value, 4)} ± {_number(error, 1)}"
    if -4 <= exponent < 6 and place > -8:
        decimals = max(-place, 0)
        return f"{round(value, -place):.{decimals}f} ± {round(error, -place):.{decimals}f}"
    shift = max(exponent, place)
    digits = shift - place
    return f"({value / 10.0**shift:.{digits}f} ± {error / 10.0**shift:.{digits}f}) × {_power(shift)}"


def write_measured(value: float, error: float, style: str = "number") -> str:
    """A value in a style, with its error bar: ``12.34 ± 0.15``, ``99.45 ± 0.02%``."""
    if style == "percent" and error > 0:
        return f"{write_with_error(100 * value, 100 * error)}%"
    return write_with_error(value, error) if error > 0 else write(value, style)


def _last_place(error: float) -> int:
    """The power of ten of the last digit to write of an error."""
    exponent = math.floor(math.log10(error))
    leading = round(100 * error / 10.0**exponent)
    return exponent - 1 if leading < 355 else exponent


def write_seconds(seconds: float) -> str:
    """``12 ms``, ``3.4 s``, ``2 min 5 s``."""
    if seconds < 1e-3:
        return f"{1e6 * seconds:.0f} µs"
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{int(seconds // 60)} min {round(seconds % 60)} s"


def write_gradients(gradients: float) -> str:
    """``2.1 gradients``."""
    return f"{gradients:.1f} gradients" if gradients < 9.95 else f"{write(round(gradients), 'count')} gradients"


def _number(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return "not finite" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if -3 <= exponent < 5:
        return f"{value:.{max(digits - 1 - exponent, 0)}f}"
    mantissa = value / 10.0**exponent if exponent > -300 else value * 1e300 / 10.0 ** (exponent + 300)
    return f"{mantissa:.{min(digits, 3) - 1}f} × {_power(exponent)}"


def _power(exponent: int) -> str:
    return "10" + str(exponent).translate(_SUPERSCRIPTS)
