"""Effective dimensions against sums over known eigenvalues."""

from __future__ import annotations

import pytest
import torch

from hesse.core.errors import NotConvergedError, StructureError, SymmetryError
from hesse.linalg.effective_dimension import effective_dimension
from hesse.operators import BlockDiagonal, Congruence, Dense, Diagonal, Identity, Kronecker

from .calibrated import SPECTRA, assert_calibrated
from .counted import HERMITIAN, PSD, Counted, random_matrix, tree_space, with_spectrum

F64, C128 = torch.float64, torch.complex128


def share(values: torch.Tensor, damping: float) -> float:
    return float((values.double() / (values.double() + damping)).sum())


@pytest.mark.parametrize("dtype", [F64, C128, torch.float32])
def test_exact(dtype: torch.dtype) -> None:
    values = torch.cat([torch.zeros(20), torch.logspace(0, -5, 60)])
    A = Counted(with_spectrum(values, dtype), tree_space(80, dtype), tree_space(80, dtype), PSD)
    found = effective_dimension(A, 1e-3)
    assert float(found) == pytest.approx(share(values, 1e-3), rel=1e-3 if dtype == torch.float32 else 1e-6)
    assert found.products == 80 and found.standard_error == 0


def test_structure() -> None:
    d = random_matrix(5).square()
    J = random_matrix(4, 9)
    S = with_spectrum(torch.linspace(1, 2, 3))
    blocks = BlockDiagonal({"b": Kronecker(S, S, tags=PSD), "a": Diagonal(d, tags=PSD)})
    both = torch.cat([torch.linalg.eigvalsh(torch.kron(S, S)), d])
    for A, values in (
        (Diagonal(d, tags=PSD), d),
        (Congruence(Dense(J)), torch.linalg.svdvals(J).square()),
        (blocks, both),
        (2 * blocks + 3 * Identity(blocks.in_space), 2 * both + 3),
        (Identity(blocks.in_space), torch.ones(14)),
    ):
        found = effective_dimension(A, 0.3)
        assert float(found) == pytest.approx(share(values, 0.3), rel=1e-12) and found.products == 0


@pytest.mark.parametrize(("name", "dtype"), [*((name, F64) for name in SPECTRA), ("flat", C128)])
def test_standard_errors_are_calibrated(name: str, dtype: torch.dtype) -> None:
    values = SPECTRA[name]
    assert_calibrated(
        lambda A, g: effective_dimension(A, 0.3, method="lanczos", rtol=0.01, generator=g), values, share(values, 0.3), dtype
    )


def test_the_rules_enclose_the_truth() -> None:
    values = torch.logspace(2, -6, 300, dtype=F64)
    A = Counted(with_spectrum(values), tags=PSD)
    with pytest.raises(NotConvergedError) as caught:
        effective_dimension(A, 1e-4, method="lanczos", rtol=0.002, max_products=16 * 14)
    rough = caught.value.partial
    assert abs(rough - share(values, 1e-4)) < 3 * rough.standard_error and rough.truncation > 1
    fine = effective_dimension(A, 1e-2, method="lanczos", rtol=0.03)
    assert abs(fine - share(values, 1e-2)) < 3 * fine.standard_error
    assert fine.truncation < 0.2 * fine.standard_error  # pyright: ignore[reportAttributeAccessIssue]


def test_large_ones_are_estimated() -> None:
    values = torch.logspace(0, -4, 800, dtype=F64)
    A = Counted(with_spectrum(values), tags=PSD)
    found = effective_dimension(A, 0.1, rtol=0.1)
    assert 0 < found.standard_error <= 0.1 * found and found.products == sum(A.blocks) < 800
    assert abs(found - share(values, 0.1)) < 3 * found.standard_error


def test_refusals() -> None:
    indefinite = Counted(with_spectrum(torch.linspace(-1, 1, 90)), tags=HERMITIAN)
    for method in ("exact", "lanczos"):
        with pytest.raises(SymmetryError, match="semi-definite"):
            effective_dimension(indefinite, 0.1, method=method)
    with pytest.raises(SymmetryError, match=r"J\.H @ J"):
        effective_dimension(Counted(random_matrix(4, 4)), 0.1)
    with pytest.raises(StructureError, match="damping=0"):
        effective_dimension(indefinite, 0.0)
