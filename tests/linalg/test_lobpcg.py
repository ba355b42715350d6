"""LOBPCG through eigsh: ends of spectra, with and without preconditioners, clusters of tiny eigenvalues."""

from __future__ import annotations

import pytest
import torch

from hesse.core.errors import NotConvergedError, StructureError
from hesse.linalg import eigsh
from hesse.operators import Dense, Identity

from .counted import HERMITIAN, PSD, Counted, seeded, tree_space, with_spectrum
from .test_eigen import assert_eigenpairs

F64, C128, F32 = torch.float64, torch.complex128, torch.float32
N = 300
SPECTRA = {
    "flat": torch.linspace(0.01, 1, N, dtype=F64),
    "decaying": torch.logspace(0, -6, N, dtype=F64),
    "tiny cluster": torch.cat([1e-7 * (1 + torch.arange(8)), torch.linspace(0.1, 1, N - 8)]).double(),
    "kernel": torch.cat([torch.zeros(9), torch.linspace(0.01, 1, N - 9)]).double(),
}


def rough_inverse(values: torch.Tensor, dtype: torch.dtype) -> Dense:
    """The inverse with eigenvalues wrong by factors between a half and two."""
    wrong = 2 ** (2 * torch.rand(len(values), generator=seeded(9), dtype=F64) - 1)
    space = tree_space(len(values), dtype)
    return Dense(with_spectrum(wrong / (values + 1e-6), dtype), space, space, PSD)


@pytest.mark.parametrize("dtype", [F64, C128, F32])
@pytest.mark.parametrize("name", SPECTRA)
def test_preconditioned_smallest(name: str, dtype: torch.dtype) -> None:
    values = SPECTRA[name]
    M = with_spectrum(values, dtype)
    space = tree_space(N, dtype)
    rtol = 1e-9 if dtype != F32 else 8e-6
    for k in (1, 6):
        A = Counted(M, space, space, PSD)
        found = eigsh(A, k, which="smallest", method="lobpcg", preconditioner=rough_inverse(values, dtype), rtol=rtol)
        assert_eigenpairs(found, M, values, "smallest", k, 1.1 * rtol)
        assert found.products == sum(A.blocks) < 500 and not A.calls["mv"]


def test_a_preconditioner_saves_products() -> None:
    values = SPECTRA["decaying"]
    A = Counted(with_spectrum(values), tree_space(N), tree_space(N), PSD)
    found = eigsh(A, 4, which="smallest", preconditioner=rough_inverse(values, F64), rtol=1e-10)  # "auto" takes LOBPCG
    assert found.products == sum(A.blocks) < 300
    torch.testing.assert_close(found.values, values.flip(0)[:4], rtol=1e-4, atol=0)
    with pytest.raises(NotConvergedError):
        eigsh(A, 4, which="smallest", method="lobpcg", rtol=1e-10, max_products=1000)


@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_without_preconditioner(which: str) -> None:
    values = torch.cat([torch.tensor([-2.0, -1.9]), torch.rand(N - 5, generator=seeded()), torch.tensor([4.0, 4, 3])]).double()
    A = Counted(with_spectrum(values), tags=HERMITIAN)
    found = eigsh(A, 3, which=which, method="lobpcg", preconditioner=Identity(A.in_space))
    key = values.sort(descending=which == "largest").values
    torch.testing.assert_close(found.values, key[:3], rtol=0, atol=1e-6 * 4)
    assert float(found.residuals.max()) <= 4e-6 + 1e-9 and found.products == sum(A.blocks)


@pytest.mark.parametrize("dtype", [F64, C128])
def test_clusters_of_tiny_eigenvalues_by_every_method(dtype: torch.dtype) -> None:
    values = torch.cat([1e-6 * torch.tensor([1.0, 1, 1, 1, 1, 1.5, 2, 2]), torch.linspace(0.3, 1, N - 8)]).double()
    A = Counted(with_spectrum(values, dtype), tags=PSD)
    for method in ("auto", "lanczos", "lobpcg", "exact"):
        found = eigsh(A, 8, which="smallest", method=method, rtol=1e-10)
        torch.testing.assert_close(found.values, values[:8], rtol=0, atol=2e-10)
        assert float(found.residuals.max()) <= 2e-10


def test_small_spaces_and_refusals() -> None:
    A = Counted(with_spectrum(torch.linspace(1, 2, 9)), tags=PSD)
    torch.testing.assert_close(
        eigsh(A, 4, which="smallest", method="lobpcg").values, torch.linspace(1, 2, 9)[:4].double(), rtol=1e-6, atol=0
    )
    with pytest.raises(StructureError, match="one end"):
        eigsh(A, 2, which="magnitude", method="lobpcg")
    with pytest.raises(StructureError, match="preconditioner"):
        eigsh(A, 2, method="lanczos", preconditioner=Identity(A.in_space))
    with pytest.raises(StructureError, match="space of A"):
        eigsh(A, 2, preconditioner=Identity(tree_space(9)))
    with pytest.raises(StructureError, match="'lobpcg'"):
        eigsh(A, 2, method="arpack")
