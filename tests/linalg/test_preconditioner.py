"""Preconditioners against their formulas on the matrix, and the steps that they save."""

from __future__ import annotations

import pytest
import torch

from hesse.core.errors import StructureError, SymmetryError
from hesse.linalg import eigsh, solve
from hesse.linalg.dense import dense
from hesse.linalg.preconditioner import deflation, jacobi, nystrom
from hesse.operators import LinearOperator, Tag, identity

from .counted import HERMITIAN, PSD, SYMMETRIC, Counted, random_matrix, seeded, tree_space, with_spectrum

DTYPES = {"float64": torch.float64, "complex128": torch.complex128}


def decaying(n: int, dtype: torch.dtype = torch.float64) -> Counted:
    space = tree_space(n, dtype)
    values = 1e4 * torch.arange(1, n + 1, dtype=torch.float64) ** -2.0
    return Counted(with_spectrum(values, dtype), space, space, PSD if dtype.is_complex else PSD | {Tag.SYMMETRIC})


def check_definite(P: LinearOperator) -> None:
    M = dense(P)
    assert torch.equal(M, M.mH) or float((M - M.mH).abs().max()) < 1e-12
    assert float(torch.linalg.eigvalsh(M)[0]) > 0 and Tag.PSD in P.tags and Tag.HERMITIAN in P.tags
    torch.testing.assert_close(dense(P.T), M.mT)


@pytest.mark.parametrize("dtype", DTYPES)
def test_jacobi(dtype: str) -> None:
    kind, n = DTYPES[dtype], 60
    d = torch.logspace(0, 5, n, dtype=torch.float64)
    M = torch.diag(d).to(kind) + 0.2 * with_spectrum(torch.linspace(-1, 1, n), kind)
    space = tree_space(n, kind)
    A = Counted(M, space, space, PSD)
    P = jacobi(A, damping=0.5)
    torch.testing.assert_close(dense(P), torch.diag(1 / (M.diagonal() + 0.5)))
    check_definite(P)
    b = space.unravel(random_matrix(n, dtype=kind))
    assert solve(A, b, method="cg", preconditioner=jacobi(A), full=True).iterations < 20
    negative = jacobi(Counted(-M, space, space, HERMITIAN))
    torch.testing.assert_close(dense(negative), torch.diag(1 / M.diagonal().abs()).to(kind))


def test_jacobi_names_the_leaf_with_a_zero() -> None:
    space = tree_space(12)
    A = Counted(torch.diag(torch.tensor([1.0] * 8 + [0.0] + [2.0] * 3, dtype=torch.float64)), space, space, PSD)
    with pytest.raises(StructureError, match=r"(?s)1 zero entries, the first at 'a.0'.*damping"):
        jacobi(A)
    assert dense(jacobi(A, damping=0.5))[8, 8] == 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_deflation(dtype: str) -> None:
    A = decaying(120, DTYPES[dtype])
    pairs = eigsh(A, 10, rtol=1e-10)
    P = deflation(pairs, damping=0.1)
    values, vectors = torch.linalg.eigh(A.matrix)
    top, U = values[-10:], vectors[:, -10:]
    weights = (top[0] + 0.1) / (top + 0.1) - 1
    torch.testing.assert_close(dense(P), torch.eye(120, dtype=U.dtype) + (U * weights) @ U.mH, rtol=1e-7, atol=1e-7)
    check_definite(P)
    system, b = A + 0.1 * identity(A.in_space), A.in_space.normal(generator=seeded(1))
    plain = solve(system, b, method="cg", full=True)
    found = solve(system, b, method="cg", preconditioner=P, full=True)
    assert found.residual <= 1e-8 and found.iterations < 0.8 * plain.iterations
    assert found.condition is not None and found.condition == pytest.approx(float((top[0] + 0.1) / (values[0] + 0.1)), rel=0.05)


def test_deflation_of_an_indefinite_operator() -> None:
    values = torch.cat([torch.tensor([-3000.0, -200, 900, 5000]), torch.linspace(1, 3, 60), torch.linspace(-2, -1, 60)])
    A = Counted(with_spectrum(values), tags=SYMMETRIC)
    P = deflation(eigsh(A, 4, which="magnitude"))
    check_definite(P)
    plain = solve(A, random_matrix(124), method="minres", full=True)
    found = solve(A, random_matrix(124), method="minres", preconditioner=P, full=True)
    assert found.residual <= 1e-8 and found.condition is not None and plain.condition is not None
    assert found.condition < plain.condition / 5
    with pytest.raises(StructureError, match=r"(?s)divides by the eigenvalues.*damping"):
        deflation(eigsh(A, 4, which="magnitude"), damping=200.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nystrom(dtype: str) -> None:
    A = decaying(300, DTYPES[dtype])
    P = nystrom(A, 40, damping=2.0, generator=seeded(3))
    assert sum(A.blocks) == 40
    check_definite(P)
    system, b = A + 2.0 * identity(A.in_space), A.in_space.normal(generator=seeded(1))
    plain = solve(system, b, method="cg", full=True)
    found = solve(system, b, method="cg", preconditioner=P, full=True)
    # about 70 eigenvalues above the damping: condition at most (8 lambda_40 + mu) / mu or so, not 5000
    assert found.residual <= 1e-8 and found.iterations < plain.iterations / 2
    assert found.condition is not None and found.condition < 60 < 1000 < (plain.condition or 0)


def test_nystrom_of_low_rank_is_exact_up_to_the_damping() -> None:
    J = random_matrix(8, 90)
    A = Counted(J.mT @ J, tags=PSD)
    P = nystrom(A, 20, damping=0.3)
    inverse = torch.linalg.inv(A.matrix + 0.3 * torch.eye(90, dtype=torch.float64))
    values = torch.linalg.eigvalsh(J @ J.mT)
    U = torch.linalg.eigh(A.matrix).eigenvectors[:, -8:]
    torch.testing.assert_close(U.mT @ dense(P) @ U, (values[0] + 0.3) * U.mT @ inverse @ U, rtol=1e-7, atol=1e-7)
    b = random_matrix(90, seed=2)
    found = solve(A + 0.3 * identity(A.in_space), b, method="cg", preconditioner=P, full=True)
    assert found.iterations <= 3


def test_nystrom_in_float32() -> None:
    A = decaying(200)
    single = Counted(A.matrix.float(), tags=PSD)
    P = nystrom(single, 30, damping=1.0)
    assert P.vectors.dtype == torch.float32
    system, b = single + 1.0 * identity(single.in_space), random_matrix(200).float()
    found = solve(system, b, method="cg", preconditioner=P, full=True)
    assert found.iterations < solve(system, b, method="cg", full=True).iterations / 2


def test_refusals() -> None:
    A = decaying(30)
    for rank in (0, 31):
        with pytest.raises(StructureError, match="1 <= rank <= dim"):
            nystrom(A, rank)
    with pytest.raises(SymmetryError, match=r"Tag.SYMMETRIC"):
        nystrom(Counted(A.matrix), 5)
    with pytest.raises(SymmetryError, match=r"(?s)curvature -.*deflation"):
        nystrom(Counted(with_spectrum(torch.linspace(-1, 1, 30)), tags=SYMMETRIC), 20)
