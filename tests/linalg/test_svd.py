"""Singular triplets against torch.linalg.svd and known spectra: tall, wide, deficient, squared away."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hesse.core.errors import NotConvergedError, StructureError
from hesse.linalg.svd import Svd, svd
from hesse.linalg.svd_rules import svd_rule
from hesse.operators import Conjugate, Dense, Diagonal, Kronecker, LinearOperator, Scaled
from tests.operators.zoo import operators

from .counted import Counted, random_matrix, seeded, tree_space

F64, C128, F32 = torch.float64, torch.complex128, torch.float32
R = 300
SPECTRA = {
    "decaying": torch.logspace(0, -8, R, dtype=F64),
    "multiple": torch.cat([torch.full((4,), 5.0), torch.tensor([4.0, 3, 3]), torch.linspace(0, 1, R - 7).flip(0)]).double(),
    "deficient": torch.cat([torch.tensor([3.0, 2, 1, 1]), torch.zeros(R - 4)]).double(),
    "small ones": torch.cat([torch.linspace(2, 1, R - 3), torch.tensor([1e-3, 1e-5, 0.0])]).double(),
}


def with_singular(values: Tensor, m: int, n: int, dtype: torch.dtype) -> Tensor:
    U = torch.linalg.qr(random_matrix(m, len(values), dtype=dtype)).Q
    V = torch.linalg.qr(random_matrix(n, len(values), dtype=dtype, seed=1)).Q
    return (U * values.to(dtype)) @ V.mH


def assert_triplets(A: LinearOperator, found: Svd, M: Tensor, values: Tensor, rtol: float) -> None:
    scale = max(float(torch.linalg.matrix_norm(M, 2)), 1e-300)
    U, V = A.out_space.ravel(found.U, 1), A.in_space.ravel(found.V, 1)
    torch.testing.assert_close(found.values.double(), values.double(), rtol=0, atol=rtol * scale)
    unit = torch.eye(len(values), dtype=U.dtype)
    tolerance = 300 * torch.finfo(M.dtype).eps
    torch.testing.assert_close(U.conj() @ U.mT, unit, rtol=0, atol=tolerance)
    torch.testing.assert_close(V.conj() @ V.mT, unit, rtol=0, atol=tolerance)
    right = (V @ M.mT - found.values[:, None] * U).norm(dim=-1)
    left = (U @ M.conj() - found.values[:, None] * V).norm(dim=-1)
    torch.testing.assert_close(found.residuals, torch.maximum(right, left), rtol=1e-3, atol=tolerance * scale)
    assert float(found.residuals.max()) <= rtol * scale


@pytest.mark.parametrize("shape", [(420, 300), (300, 420)])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("dtype", [F64, C128, F32])
def test_largest(name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    M = with_singular(SPECTRA[name], *shape, dtype)
    A = Counted(M, tree_space(shape[1], dtype), tree_space(shape[0], dtype))
    found = svd(A, 6, method="lanczos", generator=seeded(3))
    assert_triplets(A, found, M, SPECTRA[name][:6], 1e-6 if dtype != F32 else 1e-5)
    assert found.products == sum(A.blocks) < 700 and not A.calls["mv"]


@pytest.mark.parametrize("shape", [(420, 300), (300, 420), (300, 300)])
@pytest.mark.parametrize("name", ["deficient", "small ones"])
def test_smallest(name: str, shape: tuple[int, int]) -> None:
    M = with_singular(SPECTRA[name], *shape, F64)
    A = Counted(M, tree_space(shape[1]), tree_space(shape[0]))
    found = svd(A, 4, which="smallest", method="lanczos")
    assert_triplets(A, found, M, SPECTRA[name].flip(0)[:4], 1e-6)
    assert found.products == sum(A.blocks)


def test_smallest_that_squaring_hides_goes_dense_or_says_so() -> None:
    values = SPECTRA["decaying"]
    A = Counted(with_singular(values, 420, 300, F64))
    found = svd(A, 3, which="smallest")
    assert_triplets(A, found, A.matrix, values.flip(0)[:3], 1e-6)
    assert float(found.values[0]) == pytest.approx(1e-8, rel=1e-3)
    assert found.products == sum(A.blocks)
    with pytest.raises(NotConvergedError, match="method='exact'") as caught:
        svd(A, 3, which="smallest", method="lanczos", max_products=600)
    assert float(caught.value.partial.residuals.max()) > 1e-6


def test_values_that_the_square_has_lost() -> None:
    values = torch.cat([torch.tensor([1.0, 1e-3, 1e-4]), torch.zeros(R - 3)])
    A = Counted(with_singular(values, 420, 300, F32))
    found = svd(A, 3, method="lanczos")
    assert_triplets(A, found, A.matrix, values[:3], 1e-5)


@pytest.mark.parametrize("dtype", [F64, C128])
def test_every_operator(dtype: torch.dtype) -> None:
    for A, M in operators(dtype).values():
        k = min(3, *M.shape)
        for which in ("largest", "smallest"):
            values = torch.linalg.svdvals(M)
            wanted = values[:k] if which == "largest" else values.flip(0)[:k]
            assert_triplets(A, svd(A, k, which=which), M, wanted, 1e-12)


def test_structure_needs_no_search() -> None:
    K = Kronecker(random_matrix(2, 3), random_matrix(4, 5))
    cases = (
        K,
        Dense(random_matrix(4, 6)),
        Diagonal(random_matrix(7, dtype=C128)),
        Scaled(-2.0, K),
        Conjugate(Dense(random_matrix(3, 4, dtype=C128))),
    )
    for A in cases:
        for which in ("largest", "smallest"):
            assert svd_rule(A, 3, which) is not None
            assert svd(A, 3, which=which).products == 6  # for the residuals
    mixed = Kronecker(random_matrix(2, 5), random_matrix(6, 2))  # a wide factor and a tall one: rank 4 of 10
    assert svd_rule(mixed, 5, "largest") is None
    M = torch.kron(mixed.left, mixed.right)
    assert_triplets(mixed, svd(mixed, 6), M, torch.linalg.svdvals(M)[:6], 1e-12)
    assert_triplets(mixed, svd(mixed, 2, which="smallest"), M, torch.zeros(2), 1e-12)


def test_refusals() -> None:
    A = Counted(random_matrix(4, 6))
    for k in (0, 5):
        with pytest.raises(StructureError, match="smaller dimension"):
            svd(A, k)
    with pytest.raises(StructureError, match="'largest', 'smallest'"):
        svd(A, 2, which="magnitude")
    big = Counted(random_matrix(400, 300))
    with pytest.warns(RuntimeWarning, match="residuals up to"):
        found = svd(big, 5, max_products=40, method="lanczos", on_failure="return")
    assert len(found.values) == 5 and float(found.residuals.max()) > 1e-3


def test_random_state_is_untouched(untouched: None) -> None:
    A = Counted(with_singular(SPECTRA["multiple"], 420, 300, F64))
    assert torch.equal(svd(A, 3, method="lanczos").values, svd(A, 3, method="lanczos").values)
