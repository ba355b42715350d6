"""Systems against torch.linalg.solve: by structure, by matrix, by conjugate gradients; and what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.core.errors import NonFiniteError, NotConvergedError, StructureError, SymmetryError
from hesse.core.space import Space
from hesse.linalg import Answer, Solution, solve, solve_rule
from hesse.operators import (
    BlockDiagonal,
    Congruence,
    Conjugate,
    Dense,
    Diagonal,
    Function,
    Identity,
    Kronecker,
    LinearOperator,
    LowRank,
    Scaled,
    Tag,
    identity,
)

from .counted import HERMITIAN, PSD, SYMMETRIC, Counted, random_matrix, seeded, tree_space, with_spectrum

DTYPES = {"float64": torch.float64, "complex128": torch.complex128}


def structured(dtype: torch.dtype) -> dict[str, tuple[LinearOperator, Tensor]]:
    def t(*shape: int, seed: int = 0) -> Tensor:
        return random_matrix(*shape, dtype=dtype, seed=seed)

    n, space = 12, tree_space(12, dtype)
    d, U, V, s = t(n) + 4, t(n, 3, seed=1), t(n, 3, seed=2), t(3, seed=3)
    D = Diagonal(space.unravel(d))
    low = LowRank(U, s, V, space, space)
    eye = torch.eye(n, dtype=dtype)
    M = t(n, n, seed=4)
    L, R = t(3, 3, seed=5), t(4, 4, seed=6)
    ones = frozenset({Tag.DIAGONAL, Tag.SYMMETRIC})
    mat = Space.of(torch.zeros(3, 2, dtype=dtype))
    blocks = Space.of({"z": d[:5], "a": mat.zeros(), "m": d[:4]})
    return {
        "identity": (Identity(space), eye),
        "diagonal": (D, d.diag()),
        "scaled": (-2.5 * D, -2.5 * d.diag()),
        "dense": (Dense(M, space, space), M),
        "dense to another tree": (Dense(M, space), M),
        "conjugate": (Conjugate(Dense(M, space, space)), M.conj()),
        "kronecker": (Kronecker(L, R), torch.kron(L, R)),
        "kronecker on trees": (3 * Kronecker(L, R, space, space), 3 * torch.kron(L, R)),
        "blocks": (
            BlockDiagonal({"z": D, "a": Kronecker(L, R), "m": Counted(t(4, 4, seed=8))}),
            torch.block_diag(d.diag(), torch.kron(L, R), t(4, 4, seed=8)),
        ),
        "identity plus low rank": (0.5 * identity(space) + low, 0.5 * eye + (U * s) @ V.mT),
        "diagonals plus low ranks": (
            D + 2 * low - 0.5 * LowRank(V, out_space=space) + identity(space),
            d.diag() + 2 * (U * s) @ V.mT - 0.5 * V @ V.mT + eye,
        ),
        "diagonal by its tag": (Function(space, space, D.mv, D.mv, ones), d.diag()),
        "sum of diagonals": (D + identity(space), d.diag() + eye),
        "matrix plus others": (
            2 * (Dense(M, space, space) - 3 * identity(space)) + low + 0.5 * D + Kronecker(L, R, space, space),
            2 * M - 6 * eye + (U * s) @ V.mT + 0.5 * d.diag() + torch.kron(L, R),
        ),
        "hermitian kronecker plus identity": (
            Scaled(0.5, Scaled(4, Kronecker(L + L.mH, R @ R.mH, space, space)) + identity(space)) + 0.3 * identity(space),
            2 * torch.kron(L + L.mH, R @ R.mH) + 0.8 * eye,
        ),
        "blocks plus a diagonal": (
            BlockDiagonal(
                {"z": Dense(M[:5, :5]), "a": Kronecker(L @ L.mH, (R @ R.mH)[:2, :2]), "m": Counted(t(4, 4, seed=8))}
            )
            + 2 * BlockDiagonal({"z": Diagonal(d[:5]), "a": Identity(mat), "m": Counted(t(4, 4, seed=10))})
            + 0.7 * identity(blocks)
            + Diagonal(blocks.unravel(t(15, seed=11))),
            torch.block_diag(M[:5, :5], torch.kron(L @ L.mH, (R @ R.mH)[:2, :2]), t(4, 4, seed=8))
            + 2 * torch.block_diag(d[:5].diag(), torch.eye(6, dtype=dtype), t(4, 4, seed=10))
            + 0.7 * torch.eye(15, dtype=dtype)
            + t(15, seed=11).diag(),
        ),
    }


KEYS = [(kind, name) for kind in DTYPES for name in structured(torch.float64)]


def flat(space: Space, v: Any) -> Tensor:
    return space.ravel(v)


@pytest.mark.parametrize("key", KEYS, ids=": ".join)
def test_structure(key: tuple[str, str]) -> None:
    A, M = structured(DTYPES[key[0]])[key[1]]
    b = random_matrix(len(M), dtype=M.dtype, seed=9)
    found = solve(A, A.out_space.unravel(b), full=True)
    assert found.method == "structure" and found.residual < 1e-12 and found.iterations == 0
    expected = torch.linalg.solve(M.resolve_conj(), b)
    torch.testing.assert_close(A.in_space.ravel(found.value), expected, rtol=1e-10, atol=1e-10)


def test_structure_reaches_dimensions_that_no_matrix_does() -> None:
    n = 200_000
    U, b = random_matrix(n, 5), random_matrix(n, seed=2)
    A = LowRank(U) + 1e-3 * identity(Space.of(b))
    x = solve(A, b)
    torch.testing.assert_close(U @ (U.mT @ x) + 1e-3 * x, b, rtol=1e-8, atol=1e-6)
    assert solve_rule(Counted(random_matrix(2, 2)), random_matrix(1, 2), _never) is None


def _never(A: LinearOperator, B: Tensor) -> Answer:
    raise AssertionError("no rule for the unstructured")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["auto", "dense"])
def test_any_square_operator_by_its_matrix(method: str, dtype: str) -> None:
    M = random_matrix(15, 15, dtype=DTYPES[dtype])
    A = Counted(M, tree_space(15, DTYPES[dtype]))
    b = random_matrix(15, dtype=DTYPES[dtype], seed=1)
    found = solve(A, b, method=method, full=True)
    assert isinstance(found, Solution) and found.method == "dense" and found.residual < 1e-12
    torch.testing.assert_close(A.in_space.ravel(found.value), torch.linalg.solve(M, b))
    assert found.condition == pytest.approx(float(torch.linalg.cond(M, 1)), rel=1e-9)
    assert A.blocks[0] == 15 and max(A.blocks[1:]) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tags", [PSD, HERMITIAN])
def test_conjugate_gradients(dtype: str, tags: frozenset[Tag]) -> None:
    kind = DTYPES[dtype]
    values = torch.logspace(0, 2, 60, dtype=torch.float64)
    M, space = with_spectrum(values, kind), tree_space(60, kind)
    A = Counted(M, space, space, tags)
    b = random_matrix(60, dtype=kind, seed=1)
    found = solve(A, space.unravel(b), method="cg", full=True)
    assert found.method == "cg" and found.residual <= 1e-8
    assert found.residual == pytest.approx(float((b - M @ space.ravel(found.value)).norm() / b.norm()), rel=1e-3)
    torch.testing.assert_close(space.ravel(found.value), torch.linalg.solve(M, b), rtol=1e-6, atol=1e-6)
    assert found.condition == pytest.approx(100, rel=0.01)
    assert found.iterations <= 90 and len(A.blocks) <= found.iterations + 4


def test_conjugate_gradients_finish_with_the_number_of_distinct_eigenvalues() -> None:
    A = Counted(with_spectrum(torch.tensor([1.0, 3, 7]).repeat(50)), tags=PSD)
    found = solve(A, random_matrix(150), method="cg", rtol=1e-10, full=True)
    assert found.iterations == 3 and found.condition == pytest.approx(7, rel=1e-9)


def test_auto_takes_conjugate_gradients_for_large_operators() -> None:
    n = 1500
    A = Counted(with_spectrum(torch.linspace(1, 5, n)), tags=SYMMETRIC)
    found = solve(A, random_matrix(n), full=True)
    assert found.method == "cg" and found.residual <= 1e-8 and sum(A.blocks) < 40
    general = Counted(torch.eye(n, dtype=torch.float64) + 0.01 * random_matrix(n, n, seed=3))
    found = solve(general, random_matrix(n), full=True)
    assert found.method == "lsmr" and found.residual <= 1e-8 and sum(general.blocks) < 120


@pytest.mark.parametrize("method", ["auto", "cg", "dense", "minres", "lsmr", "cholesky"])
def test_batches_share_blocks(method: str) -> None:
    n, space = 40, tree_space(40)
    values = torch.cat([torch.ones(20), torch.linspace(1, 9, 20)])
    A = Counted(with_spectrum(values), space, space, PSD)
    b = random_matrix(3, 2, n, seed=2)
    b[1, 0] = 0
    b[0, 1] *= 1e-200
    found = solve(A, space.unravel(b), method=method, full=True)
    assert found.value["w"].shape == (3, 2, 2, 3) and found.residual <= 1e-8
    x = space.ravel(found.value, 2)
    expected = torch.linalg.solve(A.matrix, b.reshape(-1, n).mT).mT.reshape(3, 2, n)
    torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(x[0, 1] * 1e200, expected[0, 1] * 1e200, rtol=1e-6, atol=1e-6)
    assert float(x[1, 0].abs().max()) == 0
    assert not A.calls["mv"]
    if method == "cg":
        assert A.calls["mm"] <= found.iterations + 6 and A.blocks[0] == 6  # the zero takes no products, a random one does


def test_preconditioner() -> None:
    n, space = 300, tree_space(300)
    d = torch.logspace(0, 4, n, dtype=torch.float64)
    M = torch.diag(d) + 0.1 * with_spectrum(torch.linspace(-1, 1, n))
    A = Counted(M, space, space, PSD)
    M_inverse = Diagonal(space.unravel(1 / d), frozenset({Tag.PSD}))
    b = space.unravel(random_matrix(n))
    plain = solve(A, b, method="cg", full=True)
    found = solve(A, b, method="cg", preconditioner=M_inverse, full=True)
    assert found.iterations < 40 < plain.iterations / 5 and found.residual <= 1e-8
    assert found.condition is not None and found.condition < 2
    with pytest.raises(SymmetryError, match="preconditioner"):
        solve(A, b, method="cg", preconditioner=-M_inverse)
    with pytest.raises(StructureError, match="preconditioner"):
        solve(A, b, method="cg", preconditioner=Identity(Space.of(torch.zeros(n))))


def test_indefinite_operators() -> None:
    M = with_spectrum(torch.linspace(-1, 1.1, 30))
    b = random_matrix(30)
    for tags in (SYMMETRIC, PSD):  # a wrong tag does not hide it
        with pytest.raises(SymmetryError, match=r"(?s)negative curvature.*damping"):
            solve(Counted(M, tags=tags), b, method="cg", on_failure="return")
    torch.testing.assert_close(solve(Counted(M, tags=SYMMETRIC), b), torch.linalg.solve(M, b))


def test_auto_falls_from_conjugate_gradients_to_minres() -> None:
    n = 1200
    M = with_spectrum(torch.cat([torch.linspace(-2, -1, 20), torch.linspace(1, 3, n - 20)]))
    b = random_matrix(2, n, seed=1)
    for tags in (SYMMETRIC, PSD):  # a wrong tag costs time, no more
        found = solve(Counted(M, tags=tags), b, full=True)
        assert found.method == "minres" and found.residual <= 1e-8
        torch.testing.assert_close(found.value, torch.linalg.solve(M, b.mT).mT, rtol=1e-6, atol=1e-6)


def test_no_curvature_along_a_vector_that_is_not_mapped_to_zero() -> None:
    swap = Counted(torch.tensor([[0.0, 1], [1, 0]], dtype=torch.float64), tags=SYMMETRIC)
    with pytest.raises(SymmetryError, match="indefinite"):
        solve(swap, torch.tensor([1.0, 0], dtype=torch.float64), method="cg")


def test_curvature_that_rounding_hides_is_no_negative_one() -> None:
    """``p^H A p`` is 2 and ``|p| |A p|`` is 1e8; A has positive eigenvalues."""
    A = Counted(torch.diag(torch.tensor([1.0, 1e16])), tags=PSD)
    with pytest.raises(NotConvergedError, match="close to"):
        solve(A, torch.tensor([1.0, 1e-8]), method="cg")


@pytest.mark.parametrize(("dtype", "lead"), [(torch.float32, 1e-4), (torch.float32, 1e-8), (torch.float64, 1e-8)])
def test_leaves_of_very_different_sizes_hide_no_curvature(dtype: torch.dtype, lead: float) -> None:
    """``D S D`` with S of condition 4, by its diagonal; the oracle solves with S."""
    d = torch.cat([torch.ones(7), torch.full((5,), lead), torch.full((9,), 1 / lead)]).double()
    S = with_spectrum(torch.linspace(1, 4, 21, dtype=torch.float64))
    M = (d[:, None] * (S + S.mT) / 2 * d).to(dtype)
    b = d.to(dtype) * random_matrix(21, dtype=dtype, seed=2)
    right = torch.linalg.solve(M.double() / d / d[:, None], b.double() / d)  # D x
    P = Diagonal((1 / M.diagonal().double()).to(dtype), frozenset({Tag.PSD}))
    found = solve(Counted(M, tags=PSD), b, method="cg", preconditioner=P, full=True)
    assert found.residual <= 3.5e-4 and found.iterations <= 42
    large = d == 1 / lead  # of b next to nothing else is left
    assert float((found.value.double() * d - right)[large].norm()) <= 0.05 * float(right.norm())
    indefinite = M.clone()
    indefinite[-1, -1] *= -1
    with pytest.raises((SymmetryError, NotConvergedError)):  # a negative eigenvalue below the rounding of the largest
        solve(Counted(indefinite, tags=PSD), b, method="cg", preconditioner=P)


@pytest.mark.parametrize("method", ["cg", "minres"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128, torch.float32])
def test_wrong_tags_are_found_out(method: str, dtype: torch.dtype) -> None:
    M = with_spectrum(torch.linspace(1, 5, 60), dtype)
    b = random_matrix(60, dtype=dtype)  # drawn with the seed that hesse draws with by default
    skew = random_matrix(60, 60, dtype=dtype, seed=5)
    for part in (skew, 0.05 * skew):
        with pytest.raises(SymmetryError, match=r"(?s)<u, A v> = .*<A u, v> = .*method='lsmr'"):
            solve(Counted(M + part, tags=PSD), b, method=method)
    assert solve(Counted(M, tags=PSD), b, method=method, full=True).method == method


@pytest.mark.parametrize("dtype", DTYPES)
def test_cholesky(dtype: str) -> None:
    M = with_spectrum(torch.logspace(0, 3, 20, dtype=torch.float64), DTYPES[dtype])
    b = random_matrix(3, 20, dtype=M.dtype, seed=1)
    found = solve(Counted(M, tags=PSD), b, method="cholesky", full=True)
    assert found.method == "cholesky" and found.condition == pytest.approx(float(torch.linalg.cond(M, 1)), rel=1e-9)
    torch.testing.assert_close(found.value, torch.linalg.solve(M, b.mT).mT, rtol=1e-10, atol=1e-10)
    with pytest.raises(SymmetryError, match=r"(?s)eigenvalue of -1.*damping.*'minres'"):
        solve(Counted(M - 2 * torch.eye(20), tags=HERMITIAN), b, method="cholesky")
    with pytest.raises(SymmetryError, match=r"(?s)differs from its adjoint"):
        solve(Counted(M + random_matrix(20, 20, dtype=M.dtype), tags=HERMITIAN), b, method="cholesky")
    with pytest.raises(SymmetryError, match="Tag.SYMMETRIC" if dtype == "float64" else "Tag.HERMITIAN"):
        solve(Counted(M), b, method="cholesky")


@pytest.mark.parametrize("dtype", DTYPES)
def test_lsmr_solves_what_is_not_symmetric_with_a_preconditioner_of_any_kind(dtype: str) -> None:
    n = 120
    M = random_matrix(n, n, dtype=DTYPES[dtype])
    space = tree_space(n, M.dtype)
    A, b = Counted(M, space, space), random_matrix(2, n, dtype=M.dtype, seed=1)
    expected = torch.linalg.solve(M, b.mT).mT
    plain = solve(A, space.unravel(b), method="lsmr", rtol=1e-11, full=True)
    rough = torch.linalg.inv(M + 0.02 * random_matrix(n, n, dtype=M.dtype, seed=4))
    found = solve(A, space.unravel(b), method="lsmr", rtol=1e-11, preconditioner=Dense(rough, space, space), full=True)
    assert plain.method == found.method == "lsmr" and found.iterations < plain.iterations / 3
    for each in (plain, found):
        torch.testing.assert_close(space.ravel(each.value, 1), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["cg", "dense", "minres", "lsmr"])
def test_singular_operators(method: str) -> None:
    values = torch.cat([torch.zeros(5), torch.linspace(1, 2, 25)])
    M = with_spectrum(values)
    A = Counted(M, tags=PSD)
    with pytest.raises(NotConvergedError, match="singular") as caught:
        solve(A, random_matrix(30), method=method)
    partial = caught.value.partial
    assert isinstance(partial, Solution) and 0.1 < partial.residual < 1.0
    with pytest.warns(RuntimeWarning, match="damping"):
        found = solve(A, random_matrix(30), method=method, on_failure="return")
    assert torch.equal(found, partial.value)


def test_a_singular_operator_with_a_consistent_system_is_named() -> None:
    M = with_spectrum(torch.cat([torch.zeros(5), torch.linspace(1, 2, 25)]))
    with pytest.raises(NotConvergedError, match="can tell from singular") as caught:
        solve(Counted(M), M @ random_matrix(30), method="dense")
    assert "did not reach" not in str(caught.value) and "inf" not in str(caught.value)


def test_singular_structures() -> None:
    d = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    b = torch.ones(3, dtype=torch.float64)
    for A in (Diagonal(d), 2 * Diagonal(d), 0 * Diagonal(b), Dense(d.diag()), BlockDiagonal({"a": Diagonal(d)})):
        right = {"a": b} if isinstance(A, BlockDiagonal) else b
        with pytest.raises(NotConvergedError, match=r"zero|singular"):
            solve(A, right)
    with pytest.raises(NotConvergedError, match="singular"):
        solve(Kronecker(d.diag(), d.diag()), torch.ones(3, 3, dtype=torch.float64))


@pytest.mark.parametrize("method", ["cg", "minres", "lsmr"])
def test_consistent_singular_systems_have_the_solution_of_least_norm(method: str) -> None:
    M = with_spectrum(torch.cat([torch.zeros(5), torch.linspace(1, 2, 25)]))
    b = M @ random_matrix(30)
    x = solve(Counted(M, tags=PSD), b, method=method)
    torch.testing.assert_close(x, torch.linalg.pinv(M) @ b, rtol=1e-6, atol=1e-6)


def test_too_few_iterations() -> None:
    A = Counted(with_spectrum(torch.logspace(0, 4, 100)), tags=PSD)
    with pytest.raises(NotConvergedError, match=r"(?s)3 iterations.*preconditioner or more max_iterations") as caught:
        solve(A, random_matrix(100), method="cg", max_iterations=3)
    partial = caught.value.partial
    assert partial.iterations == 3
    true = float((random_matrix(100) - A.matrix @ partial.value).norm() / random_matrix(100).norm())
    assert partial.residual == pytest.approx(true, rel=1e-9)


def test_a_tolerance_beyond_the_dtype_stops_instead_of_wandering() -> None:
    A = Counted(with_spectrum(torch.logspace(0, 4, 200), torch.float32), tags=PSD)
    with pytest.raises(NotConvergedError, match="rounding errors") as caught:
        solve(A, random_matrix(200, dtype=torch.float32), method="cg", rtol=1e-12)
    assert caught.value.partial.iterations < 2000 and caught.value.partial.residual < 1e-2


def test_an_ill_conditioned_structure_is_right_or_refused() -> None:
    n = 200
    U, b = random_matrix(n, 4), random_matrix(n, seed=3)
    for weight, refused in ((1e2, False), (1e8, True)):
        A = LowRank(U, torch.full((4,), weight, dtype=torch.float64)) + 1e-3 * identity(Space.of(b))
        if refused:
            with pytest.raises(NotConvergedError, match="structure"):
                solve(A, b)
        else:
            x = solve(A, b)
            assert float((b - weight * U @ (U.mT @ x) - 1e-3 * x).norm() / b.norm()) <= 1e-8


@pytest.mark.parametrize("method", ["cg", "dense", "auto", "minres", "lsmr", "cholesky"])
def test_float32_and_half_precision(method: str) -> None:
    for dtype, limit in ((torch.float32, 3.5e-4), (torch.bfloat16, 0.09)):
        M = with_spectrum(torch.linspace(1, 3, 50), torch.float32).to(dtype)
        A = Counted(M, tags=PSD)
        b = random_matrix(50, dtype=torch.float32).to(dtype)
        found = solve(A, b, method=method, full=True)
        assert found.value.dtype == dtype and found.residual <= limit
        expected = torch.linalg.solve(M.double(), b.double())
        torch.testing.assert_close(found.value.double(), expected, rtol=limit, atol=3 * limit)


def test_damped_curvature_reads_as_the_design_says() -> None:
    J = Counted(random_matrix(30, 80), tree_space(80))
    G = Congruence(J)
    gradient = G.in_space.normal(generator=seeded(4))
    x = solve(G + 0.1 * identity(G.in_space), gradient, method="cg")
    M = J.matrix.mT @ J.matrix + 0.1 * torch.eye(80)
    expected = torch.linalg.solve(M, G.in_space.ravel(gradient))
    torch.testing.assert_close(G.in_space.ravel(x), expected, rtol=1e-5, atol=1e-5)


def test_outside_packages_register_rules() -> None:
    class Shifted(Counted):
        pass

    @solve_rule.register(Shifted)
    def _shifted(A: Shifted, B: Tensor, inner: Any) -> Answer:
        return Answer(torch.linalg.solve(A.matrix, B.mT).mT * (1 + 1e-4))  # a rule with an error of its own

    A = Shifted(random_matrix(6, 6))
    b = random_matrix(6, seed=1)
    found = solve(A, b, full=True)
    assert found.method == "structure" and found.residual <= 1e-8  # repaired by refinement
    torch.testing.assert_close(found.value, torch.linalg.solve(A.matrix, b), rtol=1e-6, atol=1e-6)


def test_a_wrong_rule_is_caught() -> None:
    class Wrong(Counted):
        pass

    @solve_rule.register(Wrong)
    def _wrong(A: Wrong, B: Tensor, inner: Any) -> Answer:
        return Answer(3 * B)

    with pytest.raises(NotConvergedError, match="structure"):
        solve(Wrong(random_matrix(6, 6)), random_matrix(6))


def test_empty() -> None:
    for method in ("auto", "dense", "cg", "minres", "lsmr", "cholesky"):
        assert solve(Counted(random_matrix(0, 0), tags=PSD), torch.zeros(0), method=method).shape == (0,)


def test_no_warning_where_all_is_well() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(Counted(with_spectrum(torch.linspace(1, 2, 9)), tags=PSD), random_matrix(9), method="cg")


def test_refusals() -> None:
    A = Counted(random_matrix(3, 3))
    b = random_matrix(3)
    with pytest.raises(StructureError, match="square"):
        solve(Counted(random_matrix(3, 4)), b)
    with pytest.raises(StructureError, match="'auto', 'cg', 'cholesky', 'dense'"):
        solve(A, b, method="gmres")
    with pytest.raises(StructureError, match="'raise', 'return'"):
        solve(A, b, on_failure="ignore")
    with pytest.raises(SymmetryError, match=r"Tag.SYMMETRIC"):
        solve(A, b, method="cg")
    with pytest.raises(SymmetryError, match=r"Tag.HERMITIAN"):
        solve(Counted(A.matrix + 0j, tags=SYMMETRIC), b + 0j, method="cg")
    with pytest.raises(StructureError, match="right-hand side"):
        solve(A, random_matrix(4))
    with pytest.raises(StructureError, match="rtol"):
        solve(A, b, rtol=0.0)
    with pytest.raises(NonFiniteError, match="right-hand side"):
        solve(A, b * torch.nan)
