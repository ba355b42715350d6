"""Small singular triplets by inverse iteration against the decomposition of the matrix."""

from __future__ import annotations

import pytest
import torch

from hesse.convolutions.factory import convolution
from hesse.convolutions.operator import Convolution
from hesse.convolutions.systems import Augmented
from hesse.convolutions.triplets import small_triplets
from tests.convolutions.test_augmented import matrix_of

REAL, COMPLEX = torch.float64, torch.complex128


def drawn(out: int, into: int, dtype: torch.dtype = REAL) -> Convolution:
    weight = torch.randn(out, into, 3, 3, dtype=dtype, generator=torch.Generator().manual_seed(out * into))
    A = convolution(weight, (into, 10, 9), padding=1)
    return Convolution(weight / torch.linalg.matrix_norm(matrix_of(A), 2), A.geometry)


@pytest.mark.parametrize(("out", "into", "dtype"), [(2, 2, REAL), (2, 3, REAL), (3, 2, REAL), (2, 2, COMPLEX)])
def test_all_up_to_a_value_are_found(out: int, into: int, dtype: torch.dtype) -> None:
    A = drawn(out, into, dtype)
    M = matrix_of(A)
    values = torch.linalg.svdvals(M).flip(0)
    needed = float((values[6] + values[7]) / 2)
    found = small_triplets(A, Augmented(A, 1e-3), needed, 64)
    assert found.complete
    assert len(found) >= 7
    assert torch.allclose(found.values[:7], values[:7], rtol=0, atol=1e-13)
    U, V = found.U.flatten(1), found.V.flatten(1)
    assert float((V @ M.mT - found.values[:, None] * U).abs().max()) < 1e-13
    assert float((U @ M.conj() - found.values[:, None] * V).abs().max()) < 1e-12
    shorter = U if out < into else V
    eye = torch.eye(len(found), dtype=dtype)
    assert float((shorter @ shorter.mH - eye).abs().max()) < 1e-13


def test_null_spaces_are_found_whole() -> None:
    A = convolution(torch.ones(1, 1, 3, 3, dtype=REAL) / 9, (1, 11, 14), padding=1)
    M = matrix_of(A)
    nullity = A.shape[1] - int(torch.linalg.matrix_rank(M))
    assert nullity > 10
    found = small_triplets(A, Augmented(A, 1e-4), 1e-3, 512)
    assert int((found.values < 1e-12).sum()) == nullity
    null = found.V[found.values < 1e-12].flatten(1)
    assert float((null @ M.mT).abs().max()) < 1e-13


def test_nothing_small() -> None:
    A = drawn(5, 2)
    found = small_triplets(A, Augmented(A, 1e-4), 5e-4, 512)
    assert found.complete
    assert len(found) == 0
    assert found.smallest == pytest.approx(float(torch.linalg.svdvals(matrix_of(A))[-1]), rel=0.05)


def test_too_many_to_look_for() -> None:
    """A search that may not grow says that it is not complete."""
    A = drawn(2, 2)
    values = torch.linalg.svdvals(matrix_of(A))
    found = small_triplets(A, Augmented(A, 1e-3), float(values[len(values) // 2]), 8)
    assert not found.complete
