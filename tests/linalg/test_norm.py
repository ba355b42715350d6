"""Frobenius and spectral norms: of every operator, and estimated."""

from __future__ import annotations

import math

import pytest
import torch

from hesse.core.errors import NotConvergedError, StructureError
from hesse.linalg import norm, norm_rule
from hesse.operators import Dense
from tests.operators.zoo import operators

from .counted import HERMITIAN, Counted, random_matrix, seeded, tree_space, with_spectrum

DTYPES = {"float64": torch.float64, "float32": torch.float32, "complex128": torch.complex128}
ZOO = {(kind, name): case for kind, dtype in DTYPES.items() for name, case in operators(dtype).items()}


@pytest.mark.parametrize("key", ZOO, ids=": ".join)
@pytest.mark.parametrize("ord", ["fro", 2])
def test_every_operator(key: tuple[str, str], ord: str | int) -> None:
    A, M = ZOO[key]
    tolerance = 1e3 * torch.finfo(M.dtype).eps
    for B, N in ((A, M), (A.H @ A, M.mH @ M), (-3 * A, 3 * M)):
        values = torch.linalg.svdvals(N)
        expected = float(values.square().sum().sqrt() if ord == "fro" else values.max())
        for method in ("auto", "exact"):
            found = norm(B, ord=ord, method=method)
            assert float(found) == pytest.approx(expected, rel=tolerance, abs=tolerance)
            assert found.standard_error == 0


@pytest.mark.parametrize("shape", [(300, 200), (200, 300)])
def test_frobenius_is_calibrated(shape: tuple[int, int]) -> None:
    M = random_matrix(*shape) @ torch.diag(torch.logspace(0, -2, shape[1], dtype=torch.float64))
    truth, inside = float(M.norm()), 0
    for seed in range(200):
        A = Counted(M, tree_space(shape[1]), tree_space(shape[0]))
        found = norm(A, method="hutchinson", rtol=0.02, generator=seeded(seed))
        assert found.standard_error <= 0.02 * found and found.products == sum(A.blocks) and not A.calls["mv"]
        inside += abs(found - truth) <= 2 * found.standard_error
    assert inside / 200 >= 0.85


def test_frobenius_switches_to_deflation_and_to_exact() -> None:
    A = Counted(random_matrix(200, 1) @ random_matrix(1, 300, seed=1))  # rank one: the worst case for random signs
    found = norm(A, rtol=0.01)
    assert found == pytest.approx(float(A.matrix.norm()), rel=1e-12)
    assert found.standard_error < 1e-12 * found and found.products == sum(A.blocks) == 17
    B = Counted(random_matrix(200, 300))
    found = norm(B, rtol=1e-4)
    assert found == pytest.approx(float(B.matrix.norm()), rel=1e-12) and found.standard_error == 0
    assert found.products == sum(B.blocks) == 200 + 16


def test_frobenius_that_does_not_converge() -> None:
    A = Counted(random_matrix(200, 1) @ random_matrix(1, 300, seed=1))
    with pytest.raises(NotConvergedError) as caught:
        norm(A, method="hutchinson", rtol=0.01, max_products=40)
    assert caught.value.partial.products == 40
    with pytest.warns(RuntimeWarning):
        found = norm(A, method="hutchinson", rtol=0.01, max_products=40, on_failure="return")
    assert abs(found - float(A.matrix.norm())) < 4 * found.standard_error


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128, torch.float32])
@pytest.mark.parametrize("shape", [(500, 300), (300, 500)])
def test_spectral_by_lanczos(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    n = min(shape)
    U = torch.linalg.qr(random_matrix(shape[0], n, dtype=dtype)).Q
    V = torch.linalg.qr(random_matrix(shape[1], n, dtype=dtype, seed=1)).Q
    M = (U * torch.cat([torch.tensor([7.0, 7.0]), torch.linspace(0, 5, n - 2)]).to(dtype)) @ V.mH
    A = Counted(M, tree_space(shape[1], dtype), tree_space(shape[0], dtype))
    found = norm(A, ord=2)
    assert abs(found - 7.0) <= found.standard_error + 20 * torch.finfo(dtype).eps
    assert 0 < found.standard_error < 1e-4
    assert found.products == sum(A.blocks) < 200
    scaled = norm(1024 * A, ord=2)
    assert scaled.standard_error == pytest.approx(1024 * found.standard_error, rel=0.05)


def test_spectral_of_an_indefinite_operator() -> None:
    A = Counted(with_spectrum(torch.linspace(-2, 1, 400)), tags=HERMITIAN)
    found = norm(A, ord=2)
    assert found == pytest.approx(2.0, rel=1e-8) and found.products == sum(A.blocks)


def test_spectral_that_does_not_converge() -> None:
    A = Counted(random_matrix(3000, 3000, dtype=torch.float32))
    with pytest.raises(NotConvergedError) as caught:
        norm(A, ord=2, rtol=1e-6, max_products=20)
    partial = caught.value.partial
    assert 0.5 < float(partial) / (2 * math.sqrt(3000)) <= 1.0 and partial.standard_error > 0
    with pytest.warns(RuntimeWarning):
        assert norm(A, ord=2, max_products=20, on_failure="return").products <= 44


def test_rules_know_nothing_of_the_unstructured() -> None:
    A = Counted(random_matrix(3, 3))
    assert norm_rule(A, "fro") is None and norm_rule(A + Dense(A.matrix), 2) is None and not A.calls


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
@pytest.mark.parametrize("ord", ["fro", 2])
def test_empty(shape: tuple[int, int], ord: str | int) -> None:
    assert norm(Counted(random_matrix(*shape)), ord=ord) == 0 == norm(Dense(random_matrix(*shape)), ord=ord)


def test_refusals() -> None:
    A = Counted(random_matrix(3, 3))
    with pytest.raises(StructureError, match="'fro', 2"):
        norm(A, ord="nuc")
    with pytest.raises(StructureError, match="'auto', 'exact', 'lanczos'"):
        norm(A, ord=2, method="hutchinson")
    with pytest.raises(StructureError, match="'auto', 'exact', 'hutchinson', 'deflated'"):
        norm(A, method="lanczos")
    with pytest.raises(StructureError, match="rtol"):
        norm(A, rtol=0.0)
