"""Factors of the border's system against `torch.linalg.solve` of a copy."""

from __future__ import annotations

import pytest
import torch

from hesse.convolutions.border import BorderFactors


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_solves_systems_of_every_group(dtype: torch.dtype, adjoint: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    S = torch.randn(3, 7, 7, dtype=dtype, generator=generator)
    right = torch.randn(2, 3, 7, dtype=dtype, generator=generator)
    before, kept = S.clone(), right.clone()
    factors = BorderFactors(S)
    known = torch.linalg.solve(before.mH if adjoint else before, right.movedim(0, -1)).movedim(-1, 0)
    assert torch.allclose(factors.solve(right, adjoint=adjoint), known, rtol=1e-11, atol=1e-11)
    assert torch.equal(right, kept)
    assert factors.lu.data_ptr() == S.data_ptr()
    assert factors.size == 7
    assert not factors.is_singular


def test_a_zero_pivot_is_told() -> None:
    S = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    S[1, 2] = 0
    assert BorderFactors(S).is_singular


def test_no_unknowns() -> None:
    factors = BorderFactors(torch.empty(2, 0, 0, dtype=torch.float64))
    assert factors.solve(torch.empty(3, 2, 0, dtype=torch.float64)).shape == (3, 2, 0)
    assert not factors.is_singular
