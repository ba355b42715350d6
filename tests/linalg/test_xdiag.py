"""XDiag: against its definition, probe by probe, and whether its error bars keep what they promise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.linalg import diagonal
from hesse.linalg.products import sign_vectors
from hesse.linalg.sketch import Sketch
from hesse.linalg.xdiag import DiagonalOf

from .counted import Counted, random_matrix, seeded, tree_space
from .spectra import DIM, MATRICES


def by_definition(M: Tensor, probes: Tensor) -> Tensor:
    """``[m, n]`` from a QR factorization of the products of the other probes."""
    found = []
    for i in range(len(probes)):
        others = probes[[k for k in range(len(probes)) if k != i]]
        Q = torch.linalg.qr(M @ others.mT).Q
        rest = M @ probes[i] - Q @ (Q.mH @ (M @ probes[i]))
        found.append((Q @ (Q.mH @ M)).diagonal() + probes[i].conj() * rest)
    return torch.stack(found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_estimate_and_errors_by_definition(dtype: torch.dtype) -> None:
    n, m = 23, 6
    M = random_matrix(n, n, dtype=dtype)
    A = Counted(M)
    sketch, probes = Sketch(A, adjoint=True), sign_vectors(A.in_space, m, seeded())
    sketch.grow(probes, probes @ M.mT)
    sketch.complete(m)
    singles = by_definition(M, probes)
    means = torch.stack([by_definition(M, probes[[k for k in range(m) if k != j]]).mean(0) for j in range(m)])
    value, errors = DiagonalOf(A).deflated(sketch)
    torch.testing.assert_close(value, singles.mean(0), rtol=0, atol=1e-11)
    jackknife = ((means - means.mean(0)).abs().square().sum(0) * (m - 1) / m).sqrt()
    torch.testing.assert_close(errors, (singles.std(0) / m**0.5 * jackknife).sqrt(), rtol=1e-9, atol=0)
    rest = DiagonalOf(A).tail(sketch)
    torch.testing.assert_close(rest[0], by_definition(M, probes)[0] - _inside(M, probes), rtol=0, atol=1e-11)


def _inside(M: Tensor, probes: Tensor) -> Tensor:
    Q = torch.linalg.qr(M @ probes[1:].mT).Q
    return (Q @ (Q.mH @ M)).diagonal()


@pytest.mark.parametrize("method", ["xdiag", "auto"])
@pytest.mark.parametrize("name", ["flat", "power", "exponential", "step", "asymmetric", "complex", "nearly diagonal"])
def test_standard_errors_are_calibrated(name: str, method: str) -> None:
    M, tags = MATRICES[name]
    inside, ratios = [], []
    for seed in range(200):
        A = Counted(M, tree_space(DIM, M.dtype), tree_space(DIM, M.dtype), tags)
        found = diagonal(A, method=method, rtol=0.2, generator=seeded(seed), full=True)
        errors = (found.value - M.diagonal()).abs()
        assert bool(found.standard_error.any()) and found.products == sum(A.blocks) < DIM and not A.calls["mv"]
        assert float(found.standard_error.norm()) <= 0.2 * float(found.value.norm())
        inside.append(float((errors <= 2 * found.standard_error).double().mean()))
        ratios.append(float(errors.norm() / found.standard_error.norm()))
    assert sum(inside) / 200 >= 0.92  # of entries and seeds
    assert 0.5 < sum(ratios) / 200 < 1.1


def test_decay_and_low_rank() -> None:
    M = MATRICES["exponential"][0]
    A = Counted(M)
    found = diagonal(A, method="auto", rtol=1e-3, full=True)
    assert float((found.value - M.diagonal()).norm()) <= 1e-3 * float(M.diagonal().norm())
    assert found.products < DIM and bool(found.standard_error.any())
    low = random_matrix(200, 5) @ random_matrix(5, 200, seed=1)
    B = Counted(low)
    torch.testing.assert_close(diagonal(B, method="xdiag", rtol=1e-3), low.diagonal(), rtol=0, atol=1e-10)
    assert sum(B.blocks) == 21


def test_refuses_16_bits() -> None:
    with pytest.raises(StructureError, match="32 bits"):
        diagonal(Counted(random_matrix(200, 200, dtype=torch.float16)), method="xdiag")
