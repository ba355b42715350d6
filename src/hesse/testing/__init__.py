"""Laws of linear operators as assertions, shipped for the tests of your own operators."""

from hesse.testing.comparison import BrokenLawError
from hesse.testing.effects import assert_no_side_effects, assert_repeatable
from hesse.testing.laws import assert_adjoint, assert_linear, assert_operator_laws, assert_transpose
from hesse.testing.products import (
    assert_batch_axes,
    assert_flat,
    assert_mm,
    assert_scipy,
    assert_spaces,
)
from hesse.testing.tags import assert_tags

__all__ = [
    "BrokenLawError",
    "assert_adjoint",
    "assert_batch_axes",
    "assert_flat",
    "assert_linear",
    "assert_mm",
    "assert_no_side_effects",
    "assert_operator_laws",
    "assert_repeatable",
    "assert_scipy",
    "assert_spaces",
    "assert_tags",
    "assert_transpose",
]
