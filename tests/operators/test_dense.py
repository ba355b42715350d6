"""Dense operators: spaces that fit, dtypes, tags."""

from __future__ import annotations

import pytest
import torch

from hesse.core.errors import StructureError
from hesse.core.space import Space
from hesse.operators import Dense, Tag
from hesse.operators.base import flat_space

from .zoo import drawing

T = drawing(torch.float64)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), ()])
def test_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(StructureError, match="Dense needs a matrix"):
        Dense(T(*shape))


def test_spaces_of_other_dimensions_are_refused() -> None:
    with pytest.raises(StructureError, match=r"\(2, 3\) for \(2, 4\)"):
        Dense(T(2, 3), flat_space(4, torch.float64))
    with pytest.raises(StructureError, match=r"\(2, 3\) for \(5, 3\)"):
        Dense(T(2, 3), None, flat_space(5, torch.float64))


def test_a_real_matrix_between_complex_spaces_keeps_imaginary_parts() -> None:
    M = T(2, 3)
    A = Dense(M, flat_space(3, torch.complex128), flat_space(2, torch.complex128))
    v = torch.complex(T(3), T(3))
    expected = torch.complex(M @ v.real, M @ v.imag)
    torch.testing.assert_close(A @ v, expected)
    torch.testing.assert_close(A @ v.expand(4, 3), expected.expand(4, 2))


def test_results_have_the_dtypes_of_the_leaves() -> None:
    out = Space.of({"half": torch.zeros(1, dtype=torch.float16), "double": torch.zeros(1, dtype=torch.float64)})
    result = Dense(T(2, 3), out_space=out) @ T(3)
    assert (result["half"].dtype, result["double"].dtype) == (torch.float16, torch.float64)


def test_tags_are_kept_by_the_transpose() -> None:
    tags = frozenset({Tag.HERMITIAN})
    A = Dense(T(3, 3) * 1j, tags=tags)
    assert A.T.tags == tags
    assert A.H is A
