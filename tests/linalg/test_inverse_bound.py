"""The norm of the inverse from Lanczos steps: against chosen spectra, and infinite where the steps do not suffice."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hesse.linalg.inverse_bound import definite_ends
from hesse.operators import identity

from .counted import PSD, Counted, with_spectrum

DOUBLE = torch.float64
SPECTRA = {
    "even": torch.linspace(0.02, 3, 90, dtype=DOUBLE),
    "logarithmic": torch.logspace(-3, 1, 90, dtype=DOUBLE),
    "one far below": torch.cat([torch.tensor([1e-5], dtype=DOUBLE), torch.linspace(1, 2, 89, dtype=DOUBLE)]),
    "many at the end": torch.cat([torch.full((40,), 1e-3, dtype=DOUBLE), torch.linspace(1, 2, 50, dtype=DOUBLE)]),
    "one value": torch.full((30,), 7.0, dtype=DOUBLE),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_the_inverse_is_bounded_within_a_factor_of_two(name: str, dtype: torch.dtype) -> None:
    values = SPECTRA[name]
    for seed in range(5):
        A = Counted(with_spectrum(values, dtype, seed), tags=PSD)
        found = definite_ends(A, 500)
        right = 1 / float(values.min())
        assert (1 - 1e-9) * right <= found.inverse <= 2.1 * right
        assert 0.8 * float(values.max()) <= found.norm <= (1 + 1e-9) * float(values.max())
        assert found.products == sum(A.blocks)


def test_every_number_of_steps_gives_a_bound() -> None:
    """The fewer, the weaker; none says that there is no small eigenvalue."""
    values = SPECTRA["one far below"]
    A = Counted(with_spectrum(values), tags=PSD)
    found = [definite_ends(A, most).inverse for most in range(1, 40)]
    assert all(inverse >= (1 - 1e-9) / float(values.min()) for inverse in found)
    assert found[0] == math.inf and found[-1] < 2.1e5


def test_float32_leaves_room_for_rounding() -> None:
    for least in (1e-2, 1e-4):
        A = Counted(with_spectrum(torch.logspace(math.log10(least), 0, 60, dtype=DOUBLE), torch.float32), tags=PSD)
        true = 1 / float(torch.linalg.eigvalsh(A.matrix.double())[0])
        assert true <= definite_ends(A, 1000).inverse <= 3 * true
    singular = Counted(with_spectrum(torch.cat([torch.zeros(2), torch.linspace(1, 2, 40)]).double(), torch.float32), tags=PSD)
    assert definite_ends(singular, 1000).inverse > 1e6


@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_sizes_whose_squares_are_out_of_range(size: float) -> None:
    values = torch.linspace(1, 4, 25, dtype=DOUBLE)
    found = definite_ends(Counted((with_spectrum(values) * size).float(), tags=PSD), 60)
    assert 0.99 / size <= found.inverse <= 2.1 / size and found.norm == pytest.approx(4 * size, rel=0.01)


def test_the_smallest_spaces() -> None:
    one = definite_ends(identity(Counted(torch.ones(1, 1)).in_space), 32)  # less what rounding may hide
    assert one.inverse == pytest.approx(1 + 4 * torch.finfo(torch.float32).eps, rel=1e-8) and one.norm == 1
    empty: Tensor = torch.zeros(0, 0, dtype=DOUBLE)
    assert definite_ends(Counted(empty, tags=PSD), 5) == (0.0, 0.0, 0)
