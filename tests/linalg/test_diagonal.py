"""The diagonal: of every operator, by products, and estimated."""

from __future__ import annotations

import pytest
import torch

from hesse.core.errors import StructureError
from hesse.linalg import diagonal, diagonal_rule
from hesse.linalg.diagonal import DiagonalEstimate
from hesse.operators import BlockDiagonal, Congruence, Dense, Diagonal, Identity, Kronecker
from tests.operators.zoo import operators

from .counted import PSD, Counted, random_matrix, seeded, tree_space, with_spectrum

DTYPES = {"float64": torch.float64, "float32": torch.float32, "complex128": torch.complex128}
ZOO = {(kind, name): case for kind, dtype in DTYPES.items() for name, case in operators(dtype).items()}


@pytest.mark.parametrize("key", ZOO, ids=": ".join)
@pytest.mark.parametrize("method", ["auto", "exact"])
def test_every_operator(key: tuple[str, str], method: str) -> None:
    A, M = ZOO[key]
    eps = torch.finfo(M.dtype).eps
    if M.shape[0] == M.shape[1]:
        found = diagonal(A, method=method)
        torch.testing.assert_close(found, M.diagonal(), rtol=1e3 * eps, atol=1e3 * eps)
    for B, N in ((A.H @ A, M.mH @ M), (Congruence(A.H), M @ M.mH)):
        torch.testing.assert_close(diagonal(B, method=method), N.diagonal(), rtol=1e3 * eps, atol=1e3 * eps)


def test_structure_spends_no_products() -> None:
    A, n = Counted(random_matrix(4, 4)), 12
    d = random_matrix(n, seed=3)
    L, R = random_matrix(2, 3, seed=1), random_matrix(6, 4, seed=2)  # square as a whole, not by factors
    tall = random_matrix(7, n, seed=5)
    known = Congruence(Dense(tall), Diagonal(random_matrix(7, seed=6))) + 3 * Dense(random_matrix(n, n, seed=4))
    for B, expected in (
        (Kronecker(L, R), torch.kron(L, R).diagonal()),
        (known, (tall.mT * random_matrix(7, seed=6)) @ tall + 3 * random_matrix(n, n, seed=4)),
        (Diagonal(d) @ Dense(random_matrix(n, n)), torch.diag(d) @ random_matrix(n, n)),
    ):
        found = diagonal_rule(B)
        assert found is not None
        torch.testing.assert_close(found, expected if expected.ndim == 1 else expected.diagonal())
    assert diagonal_rule(A) is None and diagonal_rule(A + Identity(A.in_space)) is None
    assert diagonal_rule(BlockDiagonal({"a": Dense(random_matrix(2, 3)), "b": Dense(random_matrix(3, 2))})) is None
    assert not A.calls


def test_exact_by_blocks_of_unit_vectors() -> None:
    A = Counted(random_matrix(30, 30), tree_space(30), tree_space(30))
    assert torch.equal(diagonal(A, memory=8 * 2 * 6 * 60 * 8), A.matrix.diagonal())
    assert A.blocks == [8, 8, 8, 6] and not A.calls["mv"]
    named = A.in_space.unravel(diagonal(A))
    assert torch.equal(named["w"].flatten(), A.matrix.diagonal()[:6])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_estimate_reaches_its_tolerance(dtype: torch.dtype) -> None:
    n, rtol, errors = 400, 0.1, []
    M = with_spectrum(torch.linspace(1, 2, n), dtype) + 0.02 * random_matrix(n, n, dtype=dtype)
    for seed in range(20):
        A = Counted(M, tree_space(n, dtype), tree_space(n, dtype))
        found = diagonal(A, method="hutchinson", rtol=rtol, generator=seeded(seed))
        errors.append(float((found - M.diagonal()).norm() / M.diagonal().norm()))
        assert not A.calls["mv"] and 16 <= sum(A.blocks) < 100 and A.blocks[0] == 16
    # the error over 400 entries concentrates at the standard error, which ends just below the tolerance
    assert 0.6 * rtol < sum(errors) / len(errors) <= 1.05 * rtol


def test_estimate_is_unbiased() -> None:
    n = 30
    M = random_matrix(n, n, dtype=torch.complex128)
    A = Counted(M + 8 * torch.eye(n))
    draws = torch.stack([diagonal(A, method="hutchinson", rtol=10.0, generator=seeded(seed)) for seed in range(400)])
    z = (draws.mean(0) - A.matrix.diagonal()).abs() / (draws.std(0) / 400**0.5)
    assert float(z.square().mean()) == pytest.approx(1.0, abs=0.75)


def test_auto_is_exact_without_a_tolerance_and_never_dearer_than_exact() -> None:
    A = Counted(random_matrix(50, 50))
    assert torch.equal(diagonal(A), A.matrix.diagonal()) and A.blocks == [50]
    assert torch.equal(diagonal(A, rtol=1e-6), A.matrix.diagonal())
    assert sum(A.blocks[1:]) < 100


def test_full_gives_errors_and_price() -> None:
    A = Counted(random_matrix(50, 50))
    exact = diagonal(A, full=True)
    assert isinstance(exact, DiagonalEstimate) and exact.products == 50 and not exact.standard_error.any()
    assert "exact, 50 products" in repr(exact)
    known = diagonal(Dense(A.matrix), full=True)
    assert known.products == 0 and torch.equal(known.value, exact.value)
    M = with_spectrum(torch.linspace(1, 2, 400))
    B = Counted(M)
    for method in ("hutchinson", "auto"):
        found = diagonal(B, method=method, rtol=0.1, full=True, generator=seeded(1))
        error = float((found.value - M.diagonal()).norm())
        assert error == pytest.approx(float(found.standard_error.norm()), rel=0.2)
        assert torch.equal(found.value, diagonal(B, method=method, rtol=0.1, generator=seeded(1)))
        assert "+- 0.0" in repr(found)
    assert found.products * 4 == sum(B.blocks)


def test_half_precision_is_accumulated_in_float32() -> None:
    n = 300
    M = torch.diag(torch.full((n,), 1.5, dtype=torch.bfloat16))
    found = diagonal(Counted(M), method="hutchinson", rtol=0.1)
    assert found.dtype == torch.bfloat16 and torch.equal(found, M.diagonal())


def test_empty() -> None:
    assert diagonal(Counted(random_matrix(0, 0))).shape == (0,)


def test_refusals() -> None:
    with pytest.raises(StructureError, match="square"):
        diagonal(Counted(random_matrix(3, 4)))
    with pytest.raises(StructureError, match="'auto', 'exact', 'hutchinson', 'xdiag'"):
        diagonal(Counted(random_matrix(3, 3)), method="xtrace")
    with pytest.raises(StructureError, match="rtol"):
        diagonal(Counted(random_matrix(3, 3), tags=PSD), rtol=0.0)


def test_rows_of_zeros_take_no_products() -> None:
    M = torch.zeros(1100, 1100, dtype=torch.float64)
    alive = torch.arange(3, 1100, 100)
    M[alive[:, None], alive] = random_matrix(len(alive), len(alive), dtype=torch.float64)
    A = Counted(M)
    torch.testing.assert_close(diagonal(A, method="exact"), M.diagonal(), rtol=1e-12, atol=1e-14)
    assert sum(A.blocks) == len(alive) + 1
    assert not diagonal(Counted(torch.zeros_like(M)), method="exact").any()
