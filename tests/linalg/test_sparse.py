"""Questions asked of sparse operators, beside their matrices in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import hesse
from hesse.core.errors import NonFiniteError, NotConvergedError, SymmetryError
from hesse.core.space import Space
from hesse.linalg import Answer, solve_rule, sparse_direct
from hesse.linalg.sparse_entries import entries_rule
from hesse.operators import BlockDiagonal, Congruence, Conjugate, Dense, Diagonal, LinearOperator, Sparse, Tag

SYMMETRIC = frozenset({Tag.SYMMETRIC, Tag.HERMITIAN})
PSD = SYMMETRIC | {Tag.PSD}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=generator(seed))


def scattered(rows: int, columns: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """A matrix of which one entry in five is not zero, with a full diagonal."""
    mask = torch.rand(rows, columns, generator=generator(seed + 1)) < 0.2
    return torch.where(mask | torch.eye(rows, columns, dtype=torch.bool), draw(rows, columns, dtype=dtype, seed=seed), 0)


def definite(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    root = scattered(n, n, dtype)
    return root @ root.mH + torch.eye(n, dtype=dtype)


def close(a: Tensor, b: Tensor, eps: float = 1e-11) -> None:
    torch.testing.assert_close(a, b, rtol=eps, atol=eps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_matrix_diagonal_and_norms(dtype: torch.dtype) -> None:
    M = scattered(9, 7, dtype)
    A, S = Sparse.of(M), Sparse.of(M[:7])
    assert torch.equal(hesse.dense(A), M)
    assert torch.equal(hesse.diagonal(S), M[:7].diagonal())
    assert complex(hesse.trace(S)) == pytest.approx(complex(M[:7].trace()), rel=1e-13)
    assert float(hesse.norm(A)) == pytest.approx(float(torch.linalg.norm(M)), rel=1e-13)
    assert float(hesse.norm(A, ord=2)) == pytest.approx(float(torch.linalg.matrix_norm(M, 2)), rel=1e-9)
    close(hesse.diagonal(Congruence(A)), (M.mH @ M).diagonal())


def test_entries_at_one_place_add_up_in_every_question() -> None:
    places, values = torch.tensor([[0, 1, 0, 1], [0, 1, 0, 0]]), torch.tensor([1.0, 2.0, 3.0, -1.0], dtype=torch.float64)
    A, M = Sparse(places, values, 2, 2), torch.tensor([[4.0, 0.0], [-1.0, 2.0]], dtype=torch.float64)
    assert torch.equal(hesse.dense(A), M)
    assert torch.equal(hesse.diagonal(A), M.diagonal())
    assert float(hesse.norm(A)) == pytest.approx(float(M.norm()), rel=1e-15)
    close(hesse.diagonal(Congruence(A)), (M.mT @ M).diagonal())
    close(hesse.solve(A, M @ M[0]), M[0])


def test_the_matrix_and_the_diagonal_are_differentiable() -> None:
    places, values = torch.tensor([[0, 1, 2, 2], [0, 0, 2, 1]]), draw(4).requires_grad_()
    weights = draw(3, 3, seed=5)
    A = Sparse(places, values, 3, 3)
    (grad,) = torch.autograd.grad((hesse.dense(A) * weights).sum(), values)
    close(grad, weights[tuple(places)])
    (grad,) = torch.autograd.grad((hesse.diagonal(A) * weights[0]).sum(), values)
    close(grad, torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64) * weights[0][[0, 0, 2, 0]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("kind", ["any", "transposed", "adjoint", "symmetric", "definite", "conjugate"])
def test_systems(dtype: torch.dtype, kind: str) -> None:
    M = scattered(40, 40, dtype) + 3 * torch.eye(40, dtype=dtype)
    if kind in ("symmetric", "definite"):
        M = definite(40, dtype) - (2 if kind == "symmetric" else 0) * torch.eye(40, dtype=dtype)
    tags: frozenset[Tag] = {"definite": PSD, "symmetric": SYMMETRIC}.get(kind, frozenset())
    if dtype.is_complex:
        tags = tags - {Tag.SYMMETRIC}
    B = draw(3, 40, dtype=dtype, seed=3)
    A: LinearOperator = Sparse.of(M, tags=tags)
    A = {"transposed": A.T, "adjoint": A.H, "conjugate": Conjugate(A)}.get(kind, A)
    M = {"transposed": M.mT, "adjoint": M.mH, "conjugate": M.conj()}.get(kind, M)
    found = hesse.solve(A, B, full=True)
    assert found.method == "structure"
    assert found.residual < 1e-13
    close(found.value, torch.linalg.solve(M, B.mT).mT)
    assert found.condition is not None
    exact = float(torch.linalg.cond(M, 1))
    assert exact / 3 < found.condition < exact * (1 + 1e-9)


def combinations() -> dict[str, tuple[LinearOperator, Tensor]]:
    n = 30
    M, N, d = scattered(n, n), scattered(n, n, seed=7), draw(n, seed=9).abs() + 2
    A, B, D, eye = Sparse.of(M), Sparse.of(N), Diagonal(d), torch.eye(n, dtype=torch.float64)
    identity = hesse.identity(A.in_space)
    tall = Sparse.of(scattered(50, n))
    return {
        "step": (identity - 0.1 * A, eye - 0.1 * M),
        "two": (A + 2 * B + D, M + 2 * N + torch.diag(d)),
        "product": (A @ B + D @ D, M @ N + torch.diag(d * d)),
        "damped normal equations": (tall.H @ tall + identity, scattered(50, n).mT @ scattered(50, n) + eye),
        "Gauss-Newton": (
            Congruence(tall, Diagonal(draw(50).abs())) + 0.5 * identity,
            scattered(50, n).mT @ torch.diag(draw(50).abs()) @ scattered(50, n) + 0.5 * eye,
        ),
        "blocks": (BlockDiagonal({"a": A, "b": B}) * 3, 3 * torch.block_diag(M, N)),
    }


@pytest.mark.parametrize("name", combinations())
def test_sums_and_products_of_sparse_operators(name: str) -> None:
    A, M = combinations()[name]
    entries = entries_rule(A)
    assert entries is not None
    close(torch.from_numpy(entries.toarray()), M)
    b = draw(M.shape[0], seed=4)
    found = by_rules(A, b[None])
    assert not found.trouble
    close(found.value[0], torch.linalg.solve(M, b), 1e-9)


def by_rules(A: LinearOperator, rows: Tensor) -> Answer:
    found = solve_rule(A, rows, by_rules)
    assert found is not None
    return found


def test_what_is_not_sparse_stays_a_product() -> None:
    A = Sparse.of(scattered(20, 20))
    assert entries_rule(A + Dense(draw(20, 20))) is None
    assert entries_rule(Dense(draw(20, 20)) @ A) is None
    arrow = torch.zeros(300, 300, dtype=torch.float64)
    arrow[0] = arrow[:, 0] = 1
    assert entries_rule(Sparse.of(arrow).H @ Sparse.of(arrow)) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_log_determinants(dtype: torch.dtype) -> None:
    M = definite(40, dtype)
    A = Sparse.of(M, tags=PSD - {Tag.SYMMETRIC} if dtype.is_complex else PSD)
    expected = float(torch.linalg.slogdet(M).logabsdet)
    assert float(hesse.logdet(A)) == pytest.approx(expected, rel=1e-12)
    assert float(hesse.logdet(2.0 * A)) == pytest.approx(expected + 40 * np.log(2), rel=1e-12)
    shifted = float(torch.linalg.slogdet(M + torch.eye(40, dtype=dtype)).logabsdet)
    assert float(hesse.logdet(A + hesse.identity(A.in_space))) == pytest.approx(shifted, rel=1e-12)
    tall = Sparse.of(scattered(60, 40, dtype))
    gram = scattered(60, 40, dtype).mH @ scattered(60, 40, dtype)
    assert float(hesse.logdet(Congruence(tall))) == pytest.approx(float(torch.linalg.slogdet(gram).logabsdet), rel=1e-10)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda M: -M, "on the diagonal"),
        (lambda M: M - 1.5 * torch.linalg.eigvalsh(M)[0] * torch.eye(len(M), dtype=M.dtype), "smallest pivot of -"),
        (lambda M: torch.ones(2, 2, dtype=M.dtype), "smallest pivot"),
        (lambda M: torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=M.dtype), "smallest pivot of -3"),
        (lambda M: torch.tensor([[1.0, 1, 1], [1, 1, 3], [1, 3, 1]], dtype=M.dtype), "none on the diagonal"),
    ],
)
def test_no_log_determinant_of_what_is_not_definite(change: Callable[[Tensor], Tensor], text: str) -> None:
    with pytest.raises(SymmetryError, match=text):
        hesse.logdet(Sparse.of(change(definite(40)), tags=SYMMETRIC))


@pytest.mark.parametrize("kind", ["zero row", "equal rows", "zero matrix"])
def test_singular_systems_are_refused(kind: str) -> None:
    M = scattered(12, 12) + 3 * torch.eye(12, dtype=torch.float64)
    M[4] = M[7] if kind == "equal rows" else 0
    if kind == "zero matrix":
        M = 0 * M
    A = Sparse.of(M)
    with pytest.raises(NotConvergedError, match="singular"):
        hesse.solve(A, draw(12))
    with pytest.warns(RuntimeWarning, match="singular"):
        best = hesse.solve(A, draw(12), on_failure="return")
    close(best, torch.linalg.pinv(M) @ draw(12), 1e-8)


def test_entries_that_are_not_finite_are_refused() -> None:
    M = definite(6)
    M[2, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        hesse.solve(Sparse.of(M), draw(6))


def test_factors_are_kept_until_the_entries_change(monkeypatch: pytest.MonkeyPatch) -> None:
    count, original = [0], sparse_direct._superlu

    def counting(*args: object) -> object:
        count[0] += 1
        return original(*args)  # pyright: ignore

    monkeypatch.setattr(sparse_direct, "_superlu", counting)
    M = definite(15)
    A, b = Sparse.of(M), draw(15)
    hesse.solve(A, b)
    hesse.solve(A, 2 * b)
    assert count == [1]
    A.values.mul_(2)
    close(hesse.solve(A, b), torch.linalg.solve(2 * M, b))
    assert count == [2]


def test_sizes_dtypes_and_spaces() -> None:
    assert hesse.solve(Sparse.of(draw(0, 0)), draw(0)).shape == (0,)
    assert hesse.solve(Sparse.of(definite(5)), draw(0, 5)).shape == (0, 5)
    single = Sparse.of(definite(20, torch.float32))
    x = hesse.solve(single, draw(20, dtype=torch.float32), full=True)
    assert (x.value.dtype, x.residual < 1e-5) == (torch.float32, True)
    half = Sparse.of(definite(6).to(torch.bfloat16))
    assert hesse.solve(half, draw(6).to(torch.bfloat16), full=True).residual < 0.1
    space = Space.of({"b": draw(2, 2), "a": draw(1)})
    M = definite(5)
    found = hesse.solve(Sparse.of(M, space, space), {"b": draw(2, 2), "a": draw(1, seed=2)})
    close(
        torch.cat([found["b"].flatten(), found["a"]]), torch.linalg.solve(M, torch.cat([draw(2, 2).flatten(), draw(1, seed=2)]))
    )


def test_values_that_require_grad_are_solved_for_without() -> None:
    M = definite(8)
    A = Sparse.of(M.to_sparse().requires_grad_())
    close(hesse.solve(A, draw(8)), torch.linalg.solve(M, draw(8)))


def test_least_squares_and_eigenvalues_by_products() -> None:
    M = scattered(40, 12)
    close(hesse.lstsq(Sparse.of(M), draw(40)), torch.linalg.lstsq(M, draw(40)[:, None]).solution[:, 0], 1e-7)
    S = definite(30)
    found = hesse.eigsh(Sparse.of(S, tags=PSD), 3)
    close(found.values, torch.linalg.eigvalsh(S).flip(0)[:3], 1e-8)


def test_a_large_system_has_no_large_matrix() -> None:
    n = 20_000
    i = torch.arange(n)
    places = torch.stack([torch.cat([i, i[1:], i[:-1]]), torch.cat([i, i[:-1], i[1:]])])
    values = torch.cat([torch.full((n,), 2.5), torch.full((2 * n - 2,), -1.0)]).double()
    A = Sparse(places, values, n, n, PSD)
    x = draw(n)
    close(hesse.solve(A, A @ x), x)
    found = float(hesse.logdet(A))  # eigenvalues of a tridiagonal Toeplitz matrix
    assert found == pytest.approx(float((2.5 - 2 * torch.cos(torch.pi * (i.double() + 1) / (n + 1))).log().sum()), rel=1e-12)
