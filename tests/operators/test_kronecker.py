"""Kronecker products: the row-major convention by an explicit loop, factors that do not fit."""

from __future__ import annotations

import pytest
import torch

from hesse.core.errors import StructureError
from hesse.operators import Kronecker, Tag
from hesse.operators.base import flat_space

from .zoo import drawing

T = drawing(torch.float64)


def test_entry_by_entry() -> None:
    left, right, X = T(2, 3), T(4, 5), T(3, 5)
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for p in range(2):
        for r in range(4):
            expected[p, r] = sum(left[p, q] * X[q, s] * right[r, s] for q in range(3) for s in range(5))
    torch.testing.assert_close(Kronecker(left, right) @ X, expected)


@pytest.mark.parametrize("factors", [(T(2), T(2, 2)), (T(2, 2), T(1, 2, 2))])
def test_no_matrices_are_refused(factors) -> None:
    with pytest.raises(StructureError, match="two matrices"):
        Kronecker(*factors)


def test_spaces_of_other_dimensions_are_refused() -> None:
    with pytest.raises(StructureError, match=r"\(8, 15\) for \(8, 14\)"):
        Kronecker(T(2, 3), T(4, 5), flat_space(14, torch.float64))


def test_tags_are_kept() -> None:
    eye = torch.eye(2, dtype=torch.float64)
    A = Kronecker(eye, eye, tags=frozenset({Tag.SYMMETRIC, Tag.PSD}))
    assert A.T is A
    assert Kronecker(eye, eye, tags=frozenset({Tag.PSD})).T.tags == {Tag.PSD}
