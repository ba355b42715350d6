"""Operators given by functions: what must be said of the transpose."""

from __future__ import annotations

import pytest
import torch

from hesse.check import assert_operator
from hesse.core.errors import HesseError
from hesse.operators import Function, Tag
from hesse.operators.base import flat_space
from hesse.testing import BrokenLawError

SPACE = flat_space(3, torch.float64)


def test_a_transpose_is_needed_unless_symmetric() -> None:
    with pytest.raises(HesseError, match="rmv"):
        Function(SPACE, SPACE, lambda v: v)
    with pytest.raises(HesseError, match="rmv"):
        Function(SPACE, SPACE, lambda v: v, tags=frozenset({Tag.HERMITIAN}))
    A = Function(SPACE, SPACE, lambda v: 2 * v, tags=frozenset({Tag.SYMMETRIC}))
    assert A.T is A


def test_transpose_swaps_spaces_and_functions() -> None:
    out = flat_space(2, torch.float64)
    A = Function(SPACE, out, lambda v: v[:2], lambda u: torch.cat([u, 0 * u[:1]]))
    assert (A.T.in_space, A.T.out_space) == (out, SPACE)
    assert (A.T @ torch.tensor([1.0, 2.0], dtype=torch.float64)).tolist() == [1, 2, 0]
    assert (A.T.T @ torch.arange(3.0, dtype=torch.float64)).tolist() == [0, 1]


def test_laws_find_a_wrong_transpose() -> None:
    A = Function(SPACE, SPACE, lambda v: v.cumsum(0), lambda u: u.cumsum(0))
    with pytest.raises(BrokenLawError, match="adjoint"):
        assert_operator(A)
