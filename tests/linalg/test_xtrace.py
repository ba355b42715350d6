"""XTrace: against its definition, probe by probe, and whether its error bars keep what they promise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hesse.core.errors import NotConvergedError, StructureError
from hesse.linalg import trace
from hesse.linalg.products import sign_vectors
from hesse.linalg.sketch import Sketch
from hesse.linalg.xtrace import TraceOf

from .counted import HERMITIAN, PSD, Counted, random_matrix, seeded, tree_space, with_spectrum
from .spectra import DIM, LEAST_INSIDE, MATRICES


def by_definition(M: Tensor, probes: Tensor) -> Tensor:
    """``t_i`` for each probe from a QR factorization of the products of the others, the length of ``P_i omega_i``
    controlled by the other probes' forms."""
    n, forms, lengths, inside = len(M), [], [], []
    for i in range(len(probes)):
        others = probes[[k for k in range(len(probes)) if k != i]]
        Q = torch.linalg.qr(M @ others.mT).Q
        rest = probes[i] - Q @ (Q.mH @ probes[i])
        forms.append(rest.conj() @ M @ rest)
        lengths.append(rest.norm() ** 2)
        inside.append((Q.mH @ M @ Q).trace())
    forms, lengths, inside, free = torch.stack(forms), torch.stack(lengths), torch.stack(inside), n - len(probes) + 1
    slope = torch.stack([torch.cat([forms[:i], forms[i + 1 :]]).mean() / free for i in range(len(forms))])
    return inside + forms - slope * (lengths - free)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_estimate_and_error_by_definition(dtype: torch.dtype) -> None:
    n, m = 23, 7
    M = random_matrix(n, n, dtype=dtype) + 2 * torch.eye(n)
    A = Counted(M)
    sketch = Sketch(A, adjoint=False)
    probes = sign_vectors(A.in_space, m, seeded())
    sketch.grow(probes, probes @ M.mT)
    sketch.complete(m)
    singles = by_definition(M, probes)
    means = torch.stack([by_definition(M, probes[[k for k in range(m) if k != j]]).mean() for j in range(m)])
    value, error = TraceOf(A).deflated(sketch)
    torch.testing.assert_close(value[0], singles.mean(), rtol=1e-11, atol=0)
    jackknife = ((means - means.mean()).abs().square().sum() * (m - 1) / m).sqrt()
    assert float(error) == pytest.approx(float((singles.std() / m**0.5 * jackknife).sqrt()), rel=1e-10)


@pytest.mark.parametrize("name", MATRICES)
def test_standard_errors_are_calibrated(name: str) -> None:
    M, tags = MATRICES[name]
    truth, inside, z = complex(M.trace()), 0, []
    for seed in range(200):
        A = Counted(M, tree_space(DIM, M.dtype), tree_space(DIM, M.dtype), tags)
        found = trace(A, method="xtrace", rtol=0.12 if name == "indefinite" else 0.03, generator=seeded(seed))
        assert 0 < found.standard_error <= 0.12 * abs(found) and found.products == sum(A.blocks) and not A.calls["mv"]
        error = abs(complex(found) - truth)
        inside += error <= 2 * found.standard_error
        z.append(error / found.standard_error)
    assert inside / 200 >= LEAST_INSIDE
    # too long a bar where the spectrum decays, most of all past the end of a step
    assert (0.2 if name == "step" else 0.45) < float(torch.tensor(z).square().mean().sqrt()) < 1.2


def test_unbiased() -> None:
    M = random_matrix(60, 60) + torch.eye(60)
    A, draws = Counted(M), []
    for seed in range(400):
        sketch, probes = Sketch(A, adjoint=False), sign_vectors(A.in_space, 6, seeded(seed))
        sketch.grow(probes, probes @ M.mT)
        sketch.complete(6)
        draws.append(TraceOf(A).deflated(sketch)[0])
    values = torch.cat(draws)
    assert abs(float((values.mean() - M.trace()) / (values.std() / 20))) < 3


def test_length_control_reaches_what_resphering_does() -> None:
    """On a step spectrum the error is far below that of the lengths of the vectors in the flat tail."""
    values = torch.where(torch.arange(300) < 20, 1.0, 1e-3).double()
    M = with_spectrum(values)
    errors = []
    for seed in range(20):
        A = Counted(M, tags=PSD)
        found = trace(A, method="xtrace", rtol=1e-5, generator=seeded(seed))
        assert found.products <= 80
        errors.append(float(found - values.sum()))
    # without the control: 1e-3 * sqrt(2 * 20 / 32) = 1e-3
    assert float(torch.tensor(errors).square().mean().sqrt()) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_low_rank_is_exact_up_to_rounding(dtype: torch.dtype) -> None:
    M = random_matrix(300, 9, dtype=dtype) @ random_matrix(9, 300, dtype=dtype, seed=1)
    A, eps = Counted(M), torch.finfo(dtype).eps
    found = trace(A, method="xtrace", rtol=1e-3)
    assert found.products == 16 + 9 == sum(A.blocks)
    assert abs(complex(found) - complex(M.trace())) <= 5 * found.standard_error <= 3e3 * eps * float(M.norm())
    assert trace(Counted(0 * M), method="xtrace") == 0


def test_exact_where_that_is_cheaper() -> None:
    M = with_spectrum(torch.linspace(-1, 1.1, 300))
    A = Counted(M, tags=HERMITIAN)
    found = trace(A, method="xtrace", rtol=1e-4)
    assert found.standard_error == 0 and found == pytest.approx(float(M.trace()), abs=1e-10)
    assert found.products == sum(A.blocks) <= 300 + 48
    small = Counted(random_matrix(20, 20))
    assert trace(small, method="xtrace").products == 20


def test_limits_and_refusals() -> None:
    M = with_spectrum(1 / torch.arange(1, 301, dtype=torch.float64))
    A = Counted(M)
    with pytest.raises(NotConvergedError, match="max_products") as caught:
        trace(A, method="xtrace", rtol=1e-6, max_products=50)
    assert caught.value.partial.products == sum(A.blocks) <= 50
    with pytest.raises(NotConvergedError):
        trace(Counted(M), method="xtrace", max_products=10)
    with pytest.raises(StructureError, match="32 bits"):
        trace(Counted(random_matrix(200, 200, dtype=torch.bfloat16)), method="xtrace")
