"""An estimate prints its error and works as the number it holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hesse.linalg import Estimate

E = Estimate(12.345, 0.4, 32)


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (E, "12.3 +- 0.4 (32 products)"),
        (Estimate(12.345, 0.0, 1), "12.345 (exact, 1 product)"),
        (Estimate(1234.5, 30.0, 8), "1.23e+03 +- 3e+01 (8 products)"),
        (Estimate(1.234e-9, 2e-11, 8), "1.23e-09 +- 2e-11 (8 products)"),
        (Estimate(-0.5, 0.031, 8), "-0.50 +- 0.03 (8 products)"),
        (Estimate(0.0, 0.031, 8), "0e+00 +- 3e-02 (8 products)"),
        (Estimate(math.nan, math.inf, 8), "nan +- inf (8 products)"),
        (Estimate(1 + 2j, 0.1, 8), "1.0+2.0j +- 0.1 (8 products)"),
    ],
)
def test_repr(estimate: Estimate, text: str) -> None:
    assert repr(estimate) == str(estimate) == text


def test_arithmetic_is_that_of_the_value() -> None:
    assert E + 1 == 13.345 and 1 + E == 13.345 and E - 1 == 11.345 and 1 - E == 1 - 12.345
    assert E * 2 == 24.69 and 2 * E == 24.69 and E / 2 == 12.345 / 2 and 2 / E == 2 / 12.345
    assert E**2 == 12.345**2 and 2**E == 2**12.345 and -E == -12.345 and abs(-1 * E) == 12.345
    assert E - E == 0 and E * E == 12.345**2 and isinstance(E - E, float)
    assert abs(Estimate(-3.0)) == 3.0 and round(E, 1) == 12.3


def test_comparisons_are_those_of_the_value() -> None:
    assert E == 12.345 and Estimate(12.345, 9.0, 1) == E and E != 3
    assert E < 13 and E <= 12.345 and E > 12 and E >= E and E > 12
    assert hash(E) == hash(12.345) and E and not Estimate(0.0, 1.0)


def test_conversions() -> None:
    assert float(E) == 12.345 and complex(E) == 12.345 and math.sqrt(E) == math.sqrt(12.345)
    assert f"{E:.2f}" == "12.35" or f"{E:.2f}" == "12.34"
    assert f"{E}" == "12.3 +- 0.4 (32 products)"
    with pytest.raises(TypeError):
        float(Estimate(1j))


def test_with_tensors_and_arrays() -> None:
    t, a = torch.tensor([1.0, 2.0], dtype=torch.float64), np.array([1.0, 2.0])
    for result in (t * E, E * t, torch.as_tensor(E * a), torch.as_tensor(np.asarray(a * E, dtype=float))):
        torch.testing.assert_close(result, 12.345 * t)
    torch.testing.assert_close(t / E, t / 12.345)


def test_frozen() -> None:
    with pytest.raises(AttributeError):
        E.value = 1.0  # pyright: ignore[reportAttributeAccessIssue]
