"""Damped congruences through few rows, against torch.linalg.solve; counts of products; what is left to other methods."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hesse
from hesse.core.errors import MemoryBudgetError, NotConvergedError, StructureError
from hesse.linalg import solve
from hesse.linalg.woodbury import congruence_rule, gram_rule, woodbury
from hesse.operators import BlockDiagonal, Congruence, Conjugate, Dense, Diagonal, Identity, Kronecker, identity

from .counted import SYMMETRIC, Counted, random_matrix, tree_space, with_spectrum

DTYPES = {"float64": torch.float64, "complex128": torch.complex128}


def curvatures(dtype: torch.dtype, rows: int) -> dict[str, Tensor | None]:
    positive = with_spectrum(torch.linspace(0.5, 3, rows), dtype)
    singular = with_spectrum(torch.cat([torch.zeros(rows // 2), torch.ones(rows - rows // 2)]), dtype)
    indefinite = with_spectrum(torch.linspace(-1, 2, rows), dtype)
    return {"identity": None, "positive": positive, "singular": singular, "indefinite": indefinite}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", curvatures(torch.float64, 4))
@pytest.mark.parametrize("scale", [1.0, -0.4])
def test_damped_congruence(scale: float, name: str, dtype: str) -> None:
    kind, rows, dim = DTYPES[dtype], 6, 40
    space = tree_space(dim, kind)
    J, H = random_matrix(rows, dim, dtype=kind), curvatures(kind, rows)[name]
    outer = Counted(J, space)
    A = 0.5 * (scale * Congruence(outer, None if H is None else Dense(H)) + 4 * identity(space)) + 1.3 * identity(space)
    M = 0.5 * scale * J.mH @ (J if H is None else H @ J) + 3.3 * torch.eye(dim, dtype=kind)
    B = random_matrix(2, dim, dtype=kind, seed=2)
    found = solve(A, space.unravel(B), full=True)
    assert found.method == "woodbury" and found.residual < 1e-12 and found.iterations == 0
    torch.testing.assert_close(space.ravel(found.value, 1), torch.linalg.solve(M, B.mT).mT, rtol=1e-9, atol=1e-9)


def test_number_of_products() -> None:
    J = Counted(random_matrix(6, 400))
    A = Congruence(J, Diagonal(torch.linspace(0, 1, 6, dtype=torch.float64))) + 0.1 * identity(J.in_space)
    assert solve(A, random_matrix(400), full=True).method == "woodbury"
    # the Gram matrix: six products each way; the solution: one each way; a look at the residual
    assert J.blocks == [6, 6, 1, 1, 1, 1]


def test_a_budget_that_is_too_small_names_all_that_is_needed() -> None:
    J, B = Counted(random_matrix(6, 4000)), random_matrix(10, 4000, seed=1)
    A = J.T @ J + 0.5 * identity(J.in_space)
    for method in ("woodbury", "auto"):
        with hesse.memory(1000), pytest.raises(MemoryBudgetError) as caught:
            solve(A, B, method=method)
        with hesse.memory(caught.value.least):
            found = solve(A, B, method=method)
        torch.testing.assert_close(found @ J.matrix.mT @ J.matrix + 0.5 * found, B, rtol=1e-6, atol=1e-6)


def test_gram_rules() -> None:
    M, L, R = random_matrix(3, 7, dtype=torch.complex128), random_matrix(2, 5), random_matrix(3, 4, seed=1)
    for J, matrix in (
        (Dense(M), M),
        ((2 - 1j) * Dense(M), (2 - 1j) * M),
        (Conjugate(Dense(M)), M.conj()),
        (Kronecker(L, R), torch.kron(L, R)),
        (Identity(tree_space(9)), torch.eye(9, dtype=torch.float64)),
    ):
        found = gram_rule(J)
        assert found is not None
        torch.testing.assert_close(found, (matrix @ matrix.mH).resolve_conj())
    assert gram_rule(Counted(L)) is None and gram_rule(2 * Counted(L)) is None
    assert gram_rule(Conjugate(Counted(L))) is None


def test_outside_packages_register_both_rules() -> None:
    class Rows(Counted):
        pass

    class Wrapped(Counted):
        inside: Congruence

    @gram_rule.register(Rows)
    def _gram(J: Rows) -> Tensor | None:
        return J.matrix @ J.matrix.mT

    @congruence_rule.register(Wrapped)
    def _inside(A: Wrapped) -> Congruence | None:
        return congruence_rule(A.inside)

    J = Rows(random_matrix(150, 900))  # too many rows for products alone
    A = Wrapped(J.matrix.mT @ J.matrix, tags=SYMMETRIC)
    A.inside = Congruence(J)
    found = solve(A + 30.0 * identity(J.in_space), random_matrix(900, seed=1), full=True)
    assert found.method == "woodbury" and J.blocks == [1, 1]
    assert woodbury(Congruence(Counted(J.matrix)) + identity(J.in_space)) is None


def test_what_is_left_to_other_methods() -> None:
    J, space = Counted(random_matrix(5, 40)), tree_space(40)
    few, eye = Congruence(J), identity(J.in_space)
    many = Congruence(Counted(random_matrix(10, 40)))
    for A in (few, few + few + eye, few + Diagonal(random_matrix(40)), few + eye - eye, many + eye, 2 * eye):
        assert woodbury(A) is None
    assert woodbury(many + eye, always=True) is not None and woodbury(few + eye) is not None
    found = solve(many + eye, random_matrix(40), method="woodbury", full=True)
    assert found.method == "woodbury" and found.residual <= 1e-12
    with pytest.raises(StructureError, match=r"(?s)'woodbury'.*damping"):
        solve(Counted(random_matrix(40, 40), space, space), space.zeros(), method="woodbury")


def test_rows_of_blocks() -> None:
    J = {"a": Counted(random_matrix(3, 30)), "b": Counted(random_matrix(4, 50, seed=1))}
    A = BlockDiagonal({name: Congruence(part) for name, part in J.items()})
    b = random_matrix(80, seed=2)
    found = solve(A + 0.5 * identity(A.in_space), A.in_space.unravel(b), full=True)
    M = torch.block_diag(*(part.matrix.mT @ part.matrix for part in J.values())) + 0.5 * torch.eye(80, dtype=torch.float64)
    assert found.method == "structure" and J["a"].blocks[:2] == [3, 3]
    torch.testing.assert_close(A.in_space.ravel(found.value), torch.linalg.solve(M, b), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_small_damping_is_refined_or_left_to_another_method(dtype: torch.dtype) -> None:
    J = Counted(random_matrix(5, 60).to(dtype))
    b = random_matrix(60, seed=1).to(dtype)
    rtol = 1e-8 if dtype == torch.float64 else 3.5e-4
    methods = []
    for damping in (1e-2, 1e-6, 1e-10):
        A = Congruence(J) + damping * identity(J.in_space)
        try:
            found = solve(A, b, full=True)
        except NotConvergedError as error:
            found = error.partial
            assert found.method == "dense" and found.residual > rtol
        methods.append(found.method)
        if found.method == "woodbury":
            true = (b - J.matrix.mT @ (J.matrix @ found.value) - damping * found.value).norm() / b.norm()
            assert float(true) <= 2 * rtol
    assert methods[0] == "woodbury" and methods[-1] == "dense"
