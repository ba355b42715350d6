"""Square convolutions: systems and determinants against the dense matrix, with and without changes of sign on the torus."""

from __future__ import annotations

import itertools

import pytest
import torch

from hesse.convolutions.factory import convolution
from hesse.convolutions.operator import Convolution
from hesse.convolutions.square import SquareSystem, inverted_symbol, spectral_bound, torus_symbol
from tests.convolutions.test_augmented import matrix_of

REAL, COMPLEX = torch.float64, torch.complex128
CASES = {
    "2-D": ((4, 4, 3, 3), (4, 9, 8), {"padding": 1}),
    "1-D": ((3, 3, 5), (3, 12), {"padding": 2}),
    "stride": ((8, 2, 3, 3), (2, 10, 8), {"padding": 1, "stride": 2}),
    "dilation": ((2, 2, 3, 3), (2, 9, 8), {"padding": 2, "dilation": 2}),
    "reflect": ((4, 4, 3, 3), (4, 7, 8), {"padding": 1, "padding_mode": "reflect"}),
    "replicate": ((4, 2, 3, 3), (4, 7, 6), {"padding": 1, "padding_mode": "replicate", "groups": 2}),
    "groups": ((6, 3, 3, 3), (6, 5, 7), {"padding": 1, "groups": 2}),
    "odd": ((3, 3, 3, 3), (3, 7, 6), {"padding": 1}),
    "even kernel": ((2, 2, 2, 4), (2, 6, 7), {"padding": "same"}),
    "3-D": ((2, 2, 3, 3, 3), (2, 4, 5, 3), {"padding": 1}),
}


def drawn(name: str, dtype: torch.dtype) -> Convolution:
    shape, size, options = CASES[name]
    weight = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(len(name)))
    return convolution(weight, size, **options)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("name", CASES)
def test_systems_on_every_torus(name: str, dtype: torch.dtype) -> None:
    A = drawn(name, dtype)
    assert SquareSystem.fits(A)
    M = matrix_of(A)
    condition = float(torch.linalg.cond(M))
    for skew in itertools.product((False, True), repeat=A.geometry.ndim):
        C = torus_symbol(A, skew).flatten(0, A.geometry.ndim - 1)
        system = SquareSystem(A, skew, torch.linalg.inv(C))
        loss = 1e-13 * condition * float(torch.linalg.cond(C).max()) + 1e-12
        for adjoint in (False, True):
            y = (A.in_space if adjoint else A.out_space).normal(2, generator=torch.Generator().manual_seed(3))
            known = torch.linalg.solve(M.mH if adjoint else M, y.flatten(1).mT).mT
            found = system.solve(y, adjoint=adjoint).flatten(1)
            assert float(torch.linalg.vector_norm(found - known) / torch.linalg.vector_norm(known)) <= min(loss, 1e-4), skew


def test_a_symbol_that_vanishes_is_inverted_on_another_torus() -> None:
    """A box of 3 on a torus of 12 cells has zeros; the one that changes signs has none."""
    A = convolution(torch.ones(1, 1, 3, dtype=REAL), (1, 11), padding=1)
    known = inverted_symbol(A)
    assert known is not None
    assert known.skew == (True,)
    assert known.condition < 100


def test_singular_everywhere() -> None:
    weight = torch.randn(2, 2, 3, dtype=REAL)
    weight[1] = weight[0]
    known = inverted_symbol(convolution(weight, (2, 9), padding=1))
    assert known is None or known.condition > 1e12


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (1, 1), (40, 40)])
def test_the_bound_of_the_norm_is_one(shape: tuple[int, int]) -> None:
    C = torch.randn(6, 2, *shape, dtype=COMPLEX, generator=torch.Generator().manual_seed(2))
    known = float(torch.linalg.matrix_norm(C, 2).max())
    assert known <= spectral_bound(C) * (1 + 1e-12)
    assert spectral_bound(C) <= 1.13 * known
    assert spectral_bound(0 * C) == 0
