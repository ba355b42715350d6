"""Probes have the moments that estimates rely on; products come checked and in the working dtype."""

from __future__ import annotations

import pytest
import torch

from hesse.core.errors import NonFiniteError
from hesse.core.space import Space
from hesse.linalg.products import all_finite, apply, row_norms, sign_vectors, unit_vectors

from .counted import Counted, random_matrix, seeded, tree_space


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_probes_are_white_with_modulus_one(dtype: torch.dtype) -> None:
    v = sign_vectors(tree_space(9, dtype), 20_000, seeded())
    assert v.dtype == dtype and v.shape == (20_000, 9)
    torch.testing.assert_close(v.abs(), torch.ones_like(v.abs()))
    torch.testing.assert_close(v.mT @ v.conj() / 20_000, torch.eye(9, dtype=dtype), rtol=0, atol=0.05)
    if dtype.is_complex:  # no phase is preferred: the bilinear moments vanish too
        torch.testing.assert_close(v.mT @ v / 20_000, torch.zeros(9, 9, dtype=dtype), rtol=0, atol=0.05)


def test_probes_of_mixed_leaves_stay_in_their_space() -> None:
    space = Space.of({"real": torch.zeros(3), "complex": torch.zeros(2, dtype=torch.complex128)})
    v = sign_vectors(space, 50, seeded())
    assert float(v[:, :3].imag.abs().max()) == 0 and float(v[:, 3:].imag.abs().min()) > 0.5


def test_unit_vectors() -> None:
    assert torch.equal(unit_vectors(tree_space(9), 2, 5), torch.eye(9, dtype=torch.float64)[2:5])
    mixed = Space.of([torch.zeros(2), torch.zeros(2, dtype=torch.complex64)])
    block = mixed.unravel(unit_vectors(mixed, 1, 4))
    assert block[0].dtype == torch.float32 and block[1].dtype == torch.complex64
    assert torch.equal(mixed.ravel(block, 1), torch.eye(4, dtype=torch.complex64)[1:4])


def test_apply() -> None:
    A = Counted(random_matrix(4, 9), tree_space(9))
    V = random_matrix(3, 9, seed=1).requires_grad_()
    W = apply(A, V)
    torch.testing.assert_close(W, V.detach() @ A.matrix.mT)
    assert A.blocks == [3] and not W.requires_grad
    assert apply(Counted(A.matrix.half()), V.half()).dtype == torch.float32
    with pytest.raises(NonFiniteError, match=r"Counted of shape \(4, 9\)"):
        apply(Counted(A.matrix / 0), V)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_row_norms_neither_underflow_nor_overflow(scale: float) -> None:
    V = random_matrix(3, 7)
    V[1] = 0
    found = row_norms((scale * V).float())
    torch.testing.assert_close(found.double() / scale, V.norm(dim=-1), rtol=1e-5, atol=0)
    assert row_norms(torch.zeros(2, 0)).shape == (2,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.complex128])
def test_finite_numbers_whose_sum_overflows_are_finite(dtype: torch.dtype) -> None:
    largest = torch.full((3, 4), torch.finfo(dtype).max / 2, dtype=dtype)
    assert not torch.isfinite(largest.sum()) and all_finite(largest) and all_finite(largest[:0])
    for bad in (torch.nan, torch.inf, -torch.inf):
        V = torch.zeros(3, 4, dtype=dtype)
        V[1, 2] = bad
        assert not all_finite(V)
    V = torch.zeros(2, 2, dtype=dtype)
    V[0, 0], V[1, 1] = torch.inf, -torch.inf
    assert not all_finite(V)
