"""The squared Frobenius norm: against its definition, calibrated, unbiased."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hesse.core.errors import NotConvergedError, StructureError
from hesse.linalg.products import sign_vectors
from hesse.linalg.sketch import Sketch
from hesse.linalg.squared_norm import squared_norm
from hesse.linalg.xnorm import SquaredNormOf
from hesse.operators import Dense

from .counted import Counted, random_matrix, seeded, tree_space, with_spectrum
from .spectra import LEAST_INSIDE, MATRICES


def by_definition(M: Tensor, probes: Tensor) -> Tensor:
    """``[m]`` from a QR factorization of the products of the other probes."""
    found = []
    for i in range(len(probes)):
        others = probes[[k for k in range(len(probes)) if k != i]]
        Q = torch.linalg.qr(M @ others.mT).Q
        rest = M @ probes[i] - Q @ (Q.mH @ (M @ probes[i]))
        found.append((Q.mH @ M).norm() ** 2 + rest.norm() ** 2)
    return torch.stack(found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(29, 17), (17, 29)])
def test_estimate_and_error_by_definition(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    M, m = random_matrix(*shape, dtype=dtype), 6
    A = Counted(M)
    sketch, probes = Sketch(A, adjoint=True), sign_vectors(A.in_space, m, seeded())
    sketch.grow(probes, probes @ M.mT)
    sketch.complete(m)
    singles = by_definition(M, probes)
    means = torch.stack([by_definition(M, probes[[k for k in range(m) if k != j]]).mean() for j in range(m)])
    value, error = SquaredNormOf(A).deflated(sketch)
    assert float(value) == pytest.approx(float(singles.mean()), rel=1e-11)
    jackknife = ((means - means.mean()).square().sum() * (m - 1) / m).sqrt()
    assert float(error) == pytest.approx(float((singles.std() / m**0.5 * jackknife).sqrt()), rel=1e-9)


@pytest.mark.parametrize("method", ["hutchinson", "deflated", "auto"])
@pytest.mark.parametrize("name", ["flat", "power", "exponential", "asymmetric", "complex", "wide"])
def test_standard_errors_are_calibrated(name: str, method: str) -> None:
    wide = random_matrix(150, 211) @ torch.diag(torch.logspace(0, -1, 211, dtype=torch.float64))
    M = wide if name == "wide" else MATRICES[name][0]
    rtol = 0.15 if method == "hutchinson" else 0.05
    truth, inside = float(M.norm()) ** 2, 0
    for seed in range(200):
        A = Counted(M, tree_space(M.shape[1], M.dtype), tree_space(M.shape[0], M.dtype))
        found = squared_norm(A, method=method, rtol=rtol, generator=seeded(seed))
        assert 0 < found.standard_error <= rtol * found and found.products == sum(A.blocks)
        inside += abs(found - truth) <= 2 * found.standard_error
    assert inside / 200 >= (0.87 if method == "hutchinson" else LEAST_INSIDE)


def test_unbiased() -> None:
    A = Counted(random_matrix(200, 150))
    draws = [float(squared_norm(A, method="deflated", rtol=9.0, generator=seeded(seed))) for seed in range(300)]
    values = torch.tensor(draws, dtype=torch.float64)
    assert abs(float((values.mean() - A.matrix.norm() ** 2) / (values.std() / 300**0.5))) < 3


def test_exact_known_and_cheap() -> None:
    M = random_matrix(7, 5)
    for A, products in ((Counted(M), 5), (Dense(M), 0)):
        found = squared_norm(A)
        assert found == pytest.approx(float(M.square().sum())) and found.products == products
    decaying = with_spectrum(torch.arange(1, 401, dtype=torch.float64) ** -2)
    A = Counted(decaying)
    found = squared_norm(A, rtol=1e-3)
    assert found.products == sum(A.blocks) <= 60 and abs(found - float(decaying.norm()) ** 2) < 4 * found.standard_error
    assert squared_norm(Counted(random_matrix(0, 4)), method="deflated") == 0


def test_limits_and_refusals() -> None:
    A = Counted(random_matrix(200, 1) @ random_matrix(1, 300, seed=1))
    with pytest.raises(NotConvergedError, match="squared") as caught:
        squared_norm(A, method="hutchinson", rtol=0.01, max_products=40)
    assert caught.value.partial.products == 40
    with pytest.raises(StructureError, match="'auto', 'exact', 'hutchinson', 'deflated'"):
        squared_norm(A, method="xtrace")
    with pytest.raises(StructureError, match="rtol"):
        squared_norm(A, rtol=-1.0)
