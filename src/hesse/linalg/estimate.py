"""`Estimate`: a number with its standard error and its price, which works as the number it holds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False, repr=False)
class Estimate:
    """A number, how far it may be off, and what it cost.

    In arithmetic and comparisons an estimate is its value (the result is a plain number, since the errors of
    two estimates may be correlated); ``float(estimate)`` is its value too.

    Attributes:
        value: the number (complex for an operator that is not Hermitian between complex spaces).
        standard_error: one standard deviation of `value`; 0 where it is exact up to rounding. For numbers
            that come from an iteration without randomness in the limit (spectral norms): the bound that the
            residual gives.
        products: products with the operator that were spent.
    """

    value: float | complex
    standard_error: float = 0.0
    products: int = 0

    def __float__(self) -> float:
        return float(self.value)  # pyright: ignore[reportArgumentType]

    def __complex__(self) -> complex:
        return complex(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __hash__(self) -> int:
        return hash(self.value)

    def __eq__(self, other: object) -> Any:
        return self.value == plain(other)

    def __lt__(self, other: Any) -> Any:
        return self.value < plain(other)

    def __le__(self, other: Any) -> Any:
        return self.value <= plain(other)

    def __gt__(self, other: Any) -> Any:
        return self.value > plain(other)

    def __ge__(self, other: Any) -> Any:
        return self.value >= plain(other)

    def __neg__(self) -> Any:
        return -self.value

    def __abs__(self) -> float:
        return abs(self.value)

    def __round__(self, digits: int | None = None) -> Any:
        return round(float(self), digits)

    def __add__(self, other: Any) -> Any:
        return self.value + plain(other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return self.value - plain(other)

    def __rsub__(self, other: Any) -> Any:
        return plain(other) - self.value

    def __mul__(self, other: Any) -> Any:
        return self.value * plain(other)

    def __rmul__(self, other: Any) -> Any:
        return plain(other) * self.value

    def __truediv__(self, other: Any) -> Any:
        return self.value / plain(other)

    def __rtruediv__(self, other: Any) -> Any:
        return plain(other) / self.value

    def __pow__(self, other: Any) -> Any:
        return self.value ** plain(other)

    def __rpow__(self, other: Any) -> Any:
        return plain(other) ** self.value

    def __format__(self, spec: str) -> str:
        return format(self.value, spec) if spec else repr(self)

    def __repr__(self) -> str:
        products = f"{self.products} product{'' if self.products == 1 else 's'}"
        if self.standard_error == 0:
            return f"{self.value:.6g} (exact, {products})"
        return f"{_with_error(self.value, self.standard_error)} ({products})"


def plain(number: Any) -> Any:
    """The value of an estimate; anything else untouched."""
    return number.value if isinstance(number, Estimate) else number


def _with_error(value: float | complex, error: float) -> str:
    """``12.3 +- 0.4``: the error to one digit, the value to the same place."""
    size = abs(value)
    if not (math.isfinite(size) and math.isfinite(error)):
        return f"{value:.4g} +- {error:.1g}"
    place = math.floor(math.log10(error))
    if 1e-4 <= size < 1e7 and -8 <= place <= 0:
        return f"{value:.{-place}f} +- {error:.{-place}f}"
    digits = max(math.floor(math.log10(size)) - place, 0) if size else 0
    return f"{value:.{min(digits, 15)}e} +- {error:.0e}"
