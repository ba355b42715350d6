"""What a solution says of itself: error bounds against exact solutions, lazily found numbers, methods, singular operators."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.core.errors import HesseError, NonFiniteError, NotConvergedError
from hesse.core.space import Space
from hesse.linalg import Answer, Solution, lstsq, lstsq_rule, solve, solve_rule
from hesse.linalg.solution import Sizes, error_bound
from hesse.operators import (
    BlockDiagonal,
    Congruence,
    Conjugate,
    Dense,
    Diagonal,
    Kronecker,
    LinearOperator,
    LowRank,
    identity,
    restrict,
)

from .counted import PSD, Counted, random_matrix, seeded, with_spectrum

KINDS = {"square": (14, 14), "tall": (22, 9), "wide": (9, 22)}


def spread(rows: int, columns: int, decades: float, dtype: torch.dtype, seed: int) -> Tensor:
    """A float32 matrix whose singular values fall over some decades."""
    double = torch.complex128 if dtype.is_complex else torch.float64
    U, _, Vh = torch.linalg.svd(random_matrix(rows, columns, dtype=double, seed=seed), full_matrices=False)
    s = torch.logspace(0, -decades, min(rows, columns), dtype=torch.float64)
    return ((U * s) @ Vh).to(dtype)


def relative(found: Tensor, right: Tensor) -> float:
    return float((found - right).norm() / found.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("consistent", [True, False], ids=["consistent", "inconsistent"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_of_float32_least_squares_is_bounded(kind: str, consistent: bool, dtype: torch.dtype) -> None:
    """Against the pseudo-inverse in float64 of the matrix as it is in float32."""
    ratios: list[float] = []
    for seed in range(12):
        M = spread(*KINDS[kind], (seed % 6) / 1.6, dtype, seed)
        wide = M.to(torch.complex128 if dtype.is_complex else torch.float64)
        x = random_matrix(M.shape[1], dtype=dtype, seed=seed + 100)
        b = M @ x if consistent else random_matrix(M.shape[0], dtype=dtype, seed=seed + 200)
        right = torch.linalg.pinv(wide) @ b.to(wide.dtype)
        for A, method in ((Dense(M), "auto"), (Counted(M), "dense"), (Counted(M), "lsmr")):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = lstsq(A, b, method=method, rtol=1e-5, on_failure="return", full=True)
            error = relative(found.value.to(wide.dtype), right)
            assert error <= found.forward_error, (seed, method, error, found.forward_error)
            ratios.append(found.forward_error / max(error, 1e-8))
    assert sorted(ratios)[len(ratios) // 2] < 1e4  # and says something


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_rank_deficient_integers_against_fractions(kind: str, rank: int) -> None:
    """``M = L R`` with integers: ``M^+ b = R^T (R R^T)^-1 (L^T L)^-1 L^T b`` is computed in fractions."""
    for seed in range(6):
        rows, columns = KINDS[kind]
        L, R = (torch.randint(-4, 5, s, generator=seeded(seed)).double() for s in ((rows, rank), (rank, columns)))
        b = torch.randint(-9, 10, (rows,), generator=seeded(seed + 50)).double()
        y = exact_solve(L.mT @ L, (L.mT @ b).tolist())
        z = exact_solve(R @ R.mT, y)
        exact = [sum((int(R[k, j]) * z[k] for k in range(rank)), Fraction(0)) for j in range(columns)]
        right = torch.tensor([float(entry) for entry in exact], dtype=torch.float64)
        M = L @ R
        for A in (Dense(M), Counted(M), LowRank(L, None, R.mT.contiguous())):
            found = lstsq(A, b, full=True)
            assert relative(found.value, right) <= found.forward_error < 1e-9
            assert found.truncated == min(M.shape) - rank or isinstance(A, LowRank)
        assert lstsq(Counted(M), b, method="lsmr", full=True).forward_error == math.inf  # which cannot tell


def exact_solve(M: Tensor, b: list[Any]) -> list[Fraction]:
    """Gauss and Jordan's elimination in fractions."""
    rows = [[Fraction(int(entry)) for entry in row] + [Fraction(right)] for row, right in zip(M, b, strict=True)]
    for k in range(len(rows)):
        pivot = next(i for i in range(k, len(rows)) if rows[i][k])
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [entry / rows[k][k] for entry in rows[k]]
        for i, row in enumerate(rows):
            if i != k:
                rows[i] = [a - row[k] * c for a, c in zip(row, rows[k], strict=True)]
    return [row[-1] for row in rows]


@pytest.mark.parametrize("method", ["auto", "dense", "lsmr", "minres", "cg", "cholesky"])
@pytest.mark.parametrize("decades", [0.5, 2.0, 3.5])
def test_the_error_of_float32_systems_is_bounded(method: str, decades: float) -> None:
    for seed in range(8):
        values = torch.logspace(0, -decades, 15, dtype=torch.float64)
        if method == "minres":
            values[::3] *= -1
        M = with_spectrum(values, torch.float32, seed=seed)
        A: LinearOperator = Dense(M) if method == "auto" else Counted(M, tags=PSD)
        B = random_matrix(3, 15, dtype=torch.float32, seed=seed + 100)
        right = torch.linalg.solve(M.double(), B.double().mT).mT
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = solve(A, B, method=method, on_failure="return", full=True)
        errors = (found.value.double() - right).norm(dim=-1) / found.value.double().norm(dim=-1)
        assert float(errors.max()) <= found.forward_error, (seed, float(errors.max()), found.forward_error)
        assert found.forward_error < 3e3 * max(float(errors.max()), 1e-7 * 10**decades)


def test_the_error_with_damping_is_bounded() -> None:
    for seed in range(8):
        M = spread(12, 20, 3.0, torch.float32, seed)
        b, wide = random_matrix(12, dtype=torch.float32, seed=seed), M.double()
        for damping in (1e-4, 0.3):
            right = torch.linalg.solve(wide.mT @ wide + damping * torch.eye(20, dtype=torch.float64), wide.mT @ b.double())
            for A, method in ((Dense(M), "auto"), (Counted(M), "lsmr")):
                found = lstsq(A, b, method=method, damping=damping, rtol=1e-5, full=True)
                assert relative(found.value.double(), right) <= found.forward_error < 0.3


def test_structures_know_their_bounds() -> None:
    d = torch.tensor([1.0, -3.0, 0.01, 5.0], dtype=torch.float64)
    L, R = random_matrix(3, 3), random_matrix(4, 4, seed=1)
    S = with_spectrum(torch.linspace(1, 2, 6, dtype=torch.float64))
    for A in (
        Diagonal(d),
        Kronecker(L, R),
        BlockDiagonal({"a": Dense(L), "b": Counted(R)}),
        2.0 * Dense(R),
        Congruence(Dense(S)) + 0.5 * identity_of(S),
    ):
        b = A.out_space.normal(2)
        for found in (solve(A, b, full=True), lstsq(A, b, full=True)):
            assert 1e-16 < found.forward_error < 1e-9


def identity_of(M: Tensor) -> LinearOperator:
    return identity(Dense(M).in_space)


def test_a_solution_that_is_not_the_shortest_is_seen() -> None:
    M = random_matrix(5, 9)
    b, away = random_matrix(5, seed=1), torch.linalg.svd(M).Vh[-1]

    class Long(Counted):
        pass

    @lstsq_rule.register(Long)
    def _long(A: Long, B: Tensor, damping: float, inner: Any) -> Answer:
        return Answer(B @ torch.linalg.pinv(M).mT + 0.01 * away, condition=10.0, norm=float(torch.linalg.matrix_norm(M, 2)))

    A = Long(M)
    A.transpose = lambda: Counted(M.mT)  # pyright: ignore
    found = lstsq(A, b, full=True)
    true = 0.01 / float(found.value.norm())
    assert found.normal_residual < 1e-9 or found.residual < 1e-9  # the certificate is met
    assert true <= found.forward_error < 1.01 * true + 1e-9


def test_numbers_are_found_when_asked_for_and_once() -> None:
    calls = {"condition": 0, "error": 0}

    class Lazy(Counted):
        pass

    def late(name: str, value: float) -> float:
        calls[name] += 1
        return value

    def answer(A: Lazy, B: Tensor) -> Answer:
        X = torch.linalg.solve(A.matrix, B.mT).mT
        return Answer(
            X, lambda: late("condition", 7.0), 2, method="boundary", truncated=0, forward_error=lambda: late("error", 0.5)
        )

    solve_rule.register(Lazy)(lambda A, B, inner: answer(A, B))
    lstsq_rule.register(Lazy)(lambda A, B, damping, inner: answer(A, B))
    A = Lazy(random_matrix(6, 6))
    for found in (solve(A, random_matrix(6), full=True), lstsq(A, random_matrix(6), full=True)):
        calls.update(condition=0, error=0)
        assert found.method == "boundary" and found.iterations == 2 and found.truncated == 0
        assert "0x" not in repr(found) and repr(found).startswith("Solution(")
        assert calls == {"condition": 0, "error": 0}
        assert found.condition == found.condition == 7.0 and found.forward_error == found.forward_error == 0.5
        assert calls == {"condition": 1, "error": 1}


@pytest.mark.parametrize("again", [copy.deepcopy, lambda found: pickle.loads(pickle.dumps(found))], ids=["copied", "pickled"])
def test_copies_hold_what_is_known_by_then(again: Any) -> None:
    A, b = Counted(random_matrix(6, 6)), random_matrix(6)
    found = solve(A, b, full=True)
    early = again(found)
    assert early.forward_error is None and early.condition == found.condition is not None
    assert torch.equal(early.value, found.value) and early.residual == found.residual and early.method == "dense"
    assert found.forward_error < 1e-9
    assert again(found).forward_error == found.forward_error
    with pytest.raises(NotConvergedError) as caught:
        solve(Counted(random_matrix(30, 30)), random_matrix(30), method="lsmr", max_iterations=2)
    assert isinstance(again(caught.value.partial), Solution)


def test_singular_systems_say_how_and_what_to_do() -> None:
    M = with_spectrum(torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0, 3.0], dtype=torch.float64))
    for A, method in ((Dense(M), "auto"), (Counted(M), "dense")):
        with pytest.raises(NotConvergedError, match=r"(?s)singular.*null space of dimension 3.*hesse.pinv\(A\) @ b") as caught:
            solve(A, random_matrix(6), method=method)
        assert caught.value.partial.truncated == 3 and caught.value.partial.condition == math.inf

    class Ruled(Counted):
        pass

    @solve_rule.register(Ruled)
    def _ruled(A: Ruled, B: Tensor, inner: Any) -> Answer:
        return Answer(B, math.inf, 0, "the convolution is singular", truncated=17, method="boundary")

    with pytest.raises(
        NotConvergedError, match=r"(?s)solve by boundary.*is singular; a null space of dimension 17.*hesse.lstsq\(A, b\)"
    ):
        solve(Ruled(random_matrix(4, 4)), random_matrix(4))


def test_least_squares_go_on_where_a_rule_gives_up() -> None:
    class Resigned(Counted):
        trouble = "it stagnates"

    @lstsq_rule.register(Resigned)
    def _resigned(A: Resigned, B: Tensor, damping: float, inner: Any) -> Answer:
        return Answer(B.new_ones(len(B), A.shape[1]), None, 9, A.trouble, method="krylov")

    M, b = random_matrix(9, 5), random_matrix(9, seed=1)
    A = Resigned(M)
    found = lstsq(A, b, full=True)
    assert found.method == "dense"
    torch.testing.assert_close(found.value, torch.linalg.pinv(M) @ b)
    A.trouble = ""
    with pytest.raises(NotConvergedError, match="lstsq by krylov"):
        lstsq(A, b)


def test_the_bound_itself() -> None:
    """Of the zero vector, of zero right-hand sides, and with infinite norms."""
    A, zero = Dense(torch.eye(3, dtype=torch.float64)), torch.zeros(1, 3, dtype=torch.float64)
    ones = torch.ones(1, 3, dtype=torch.float64)
    assert error_bound(A, zero, zero, Sizes(1.0, 1.0, None)) == 0.0
    assert error_bound(A, zero, zero, Sizes(1.0, math.inf, torch.zeros(1))) == 0.0
    assert error_bound(A, ones, zero, Sizes(1.0, 1.0, None)) == math.inf
    assert error_bound(A, ones, ones, Sizes(1.0, math.inf, None)) == math.inf
    assert error_bound(A, ones, ones, Sizes(math.nan, 1.0, torch.zeros(1))) == math.inf
    assert error_bound(A, 1.5 * ones, ones, Sizes(1.0, 1.0, None)) == pytest.approx(0.5, rel=1e-9)
    assert error_bound(A, ones[:, :0], ones[:, :0], Sizes(1.0, 1.0, None)) == 0.0
    assert error_bound(A, ones, ones, Sizes(1.0, 1.0, torch.full((1,), 0.1))) == pytest.approx(0.1 / 3**0.5, rel=1e-6)


class Marked(Counted):
    """Known to a rule that says everything."""


@lstsq_rule.register(Marked)
def _marked(A: Marked, B: Tensor, damping: float, inner: Any) -> Answer:
    X = B @ torch.linalg.pinv(A.matrix).mT
    return Answer(X, 8.0, 3, norm=4.0, truncated=2, method="boundary", forward_error=lambda: 0.125)


@solve_rule.register(Marked)
def _marked_system(A: Marked, B: Tensor, inner: Any) -> Answer:
    return _marked(A, B, 0.0, inner)


def test_wrappers_pass_on_what_a_rule_says() -> None:
    M = random_matrix(5, 5, dtype=torch.complex128)
    A = Marked(M, *[Space.of({"b": M[0, :3], "a": M[0, 3:]})] * 2)
    for B in (-3.0 * A, Conjugate(A), restrict(A, lambda name: True), BlockDiagonal({"x": A, "y": 2.0 * A})):
        b = B.out_space.normal()
        found = lstsq(B, b, full=True)
        assert (found.method, found.iterations, found.forward_error) == ("boundary", 3, 0.125)
        assert found.truncated == (4 if isinstance(B, BlockDiagonal) else 2)
        told = solve(B, b, full=True)
        assert (told.method, told.iterations, told.forward_error) == ("boundary", 3, 0.125)


def test_singular_structures_count() -> None:
    d = torch.tensor([1.0, 0.0, 2.0, 0.0], dtype=torch.float64)
    M = with_spectrum(torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64))
    wide = random_matrix(2, 3)
    cases: list[tuple[LinearOperator, int]] = [
        (Diagonal(d), 2),
        (-2.0 * Diagonal(d), 2),
        (0.0 * Dense(M), 3),
        (Kronecker(M, M), 5),
        (BlockDiagonal({"a": Dense(M), "b": Diagonal(d)}), 3),
    ]
    for A, missing in cases:
        b = A.out_space.normal()
        assert lstsq(A, b, full=True).truncated == missing
        assert lstsq(A, b, damping=0.5, full=True).truncated == 0
        with pytest.raises(NotConvergedError, match=rf"null space of dimension {missing}\b"):
            solve(A, b)
    pair = BlockDiagonal({"a": Dense(wide), "b": Dense(wide.mT)})
    found = lstsq(pair, pair.out_space.normal(), full=True)
    assert found.truncated == 1 and found.forward_error < 1e-9
    assert lstsq(LowRank(random_matrix(6, 2)), random_matrix(6), full=True).truncated == 4


def test_the_bound_of_conjugate_gradients_costs_about_as_much_as_they_do() -> None:
    """Lanczos to the condition number took twelve times as much here."""
    M = with_spectrum(torch.logspace(0, -3, 1100, dtype=torch.float64))
    A, b = Counted(M, tags=PSD), random_matrix(1100, seed=5)
    found = solve(A, b, method="cg", full=True)
    spent = sum(A.blocks)
    error = relative(found.value, torch.linalg.solve(M, b))
    assert error <= found.forward_error <= 3 * found.residual * 1e3
    assert sum(A.blocks) - spent <= 2 * found.iterations + 33


def test_what_conjugate_gradients_have_not_seen_is_not_bounded() -> None:
    """The right-hand side lies in the space of the large eigenvalues, where one step solves it."""
    values = torch.cat([torch.logspace(-6, -1, 400, dtype=torch.float64), torch.ones(1, dtype=torch.float64)])
    Q = torch.linalg.qr(random_matrix(401, 401)).Q
    A = Counted((Q * values) @ Q.mT, tags=PSD)
    A.matrix = (A.matrix + A.matrix.mT) / 2
    found = solve(A, Q[:, -1].clone(), method="cg", full=True)
    assert found.iterations <= 2 and found.forward_error == math.inf


@pytest.mark.parametrize("size", [1e19, 1e30, 1e-22, 1e-30])
@pytest.mark.parametrize("method", ["cg", "minres", "lsmr"])
def test_systems_whose_squares_are_out_of_range(method: str, size: float) -> None:
    """Solved as if the operator and the preconditioner were of size one."""
    M = (with_spectrum(torch.linspace(1, 5, 40, dtype=torch.float64)) * size).float()
    B = random_matrix(2, 40, dtype=torch.float32, seed=3)
    right = torch.linalg.solve(M.double(), B.double().mT).mT
    rough = Counted((torch.linalg.inv(M.double()) + 0.1 / size * torch.eye(40, dtype=torch.float64)).float(), tags=PSD)
    for preconditioner in (None, rough):
        found = solve(Counted(M, tags=PSD), B, method=method, preconditioner=preconditioner, full=True)
        off = float(((found.value.double() - right).norm(dim=-1) / right.norm(dim=-1)).max())
        assert off < 2e-3 and found.residual <= 3.5e-4
        assert off <= found.forward_error


@pytest.mark.parametrize("size", [1e19, 1e30, 1e-22, 1e-30])
@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_least_squares_whose_squares_are_out_of_range(damping: float, size: float) -> None:
    M, b = (random_matrix(30, 12) * size).float(), random_matrix(30, dtype=torch.float32, seed=3)
    W = M.double() / size
    right = torch.linalg.solve(W.mT @ W + damping * torch.eye(12, dtype=torch.float64), W.mT @ b.double()) / size
    found = lstsq(Counted(M), b, method="lsmr", damping=damping * size**2, full=True)
    assert relative(found.value.double(), right) <= min(found.forward_error, 3e-3)


FAR = {torch.float32: [1e36, 1e-22, 1e-36, 1e-42], torch.float64: [1e200, 1e300, 1e-165, 1e-200, 1e-300]}


@pytest.mark.parametrize(("dtype", "size"), [(dtype, size) for dtype, sizes in FAR.items() for size in sizes], ids=str)
@pytest.mark.parametrize("method", ["cholesky", "dense", "lsmr", "lstsq", "lstsq by lsmr"])
def test_bounds_at_far_sizes(method: str, dtype: torch.dtype, size: float) -> None:
    """A system of condition 1e3, solved in float64 at size one; the nearest matrix of the dtype is the one that counts."""
    M = (with_spectrum(torch.logspace(-3, 0, 21, dtype=torch.float64)) * size).to(dtype)
    M = torch.triu(M) + torch.triu(M, 1).mT
    b = (M.double() @ torch.ones(21, dtype=torch.float64)).to(dtype)
    right = torch.linalg.solve(M.double() / size, b.double() / size)
    A = Counted(M, tags=PSD)
    try:
        if method.startswith("lstsq"):
            found = lstsq(A, b, method="lsmr" if "lsmr" in method else "dense", full=True)
        else:
            found = solve(A, b, method=method, full=True)
    except HesseError:  # where few digits are left
        assert size <= 1e-36
        return
    assert relative(found.value.double(), right) <= 1.01 * found.forward_error  # that of LSMR is estimated


@pytest.mark.parametrize("away", [None, torch.zeros(1, dtype=torch.float64)])
def test_the_bound_knows_what_underflow_hides(away: Tensor | None) -> None:
    """Three of the least numbers, times 1/2, are rounded to two of them: 1/2 seems to solve what 2/3 does."""
    least, ones = 2.0**-149, torch.ones(1, 3)
    A = Dense(3 * least * torch.eye(3))
    assert torch.equal(A @ (ones[0] / 2), 2 * least * ones[0])
    assert error_bound(A, 2 * least * ones, ones / 2, Sizes(3 * least, 1 / (3 * least), away)) >= 1 / 3


def test_the_bound_of_damped_systems_at_far_sizes() -> None:
    M, b = (random_matrix(12, 9) * 1e-25).float(), random_matrix(12, seed=2).float() * 1e-25
    for relative_damping in (1e-6, 1.0, 100.0):
        W = M.double() * 1e25
        right = torch.linalg.solve(W.mT @ W + relative_damping * torch.eye(9, dtype=torch.float64), W.mT @ b.double() * 1e25)
        found = lstsq(Counted(M), b, method="lsmr", damping=relative_damping * 1e-50, full=True)
        assert relative(found.value.double(), right) <= found.forward_error


@pytest.mark.parametrize("method", ["cg", "minres", "lsmr", "dense", "cholesky", "lstsq"])
def test_solutions_that_are_out_of_range_say_so(method: str) -> None:
    A, b = Counted(1e-20 * torch.eye(3), tags=PSD), torch.full((3,), 1e30)
    with pytest.raises(NonFiniteError, match=r"(?s)solution has to fit into torch.float32.*scale b down"):
        lstsq(A, b) if method == "lstsq" else solve(A, b, method=method)


def test_truncated_singular_values_are_zeros_for_the_bound() -> None:
    A = Dense(torch.diag(torch.tensor([1.0, 1e-9])))
    found = lstsq(A, torch.tensor([1.0, 1e-9]), full=True)
    assert found.truncated == 1 and float(found.value[1]) == 0 and found.forward_error < 1e-5


@pytest.mark.parametrize("entry", [math.nan, math.inf])
def test_matrices_that_are_not_finite_are_refused_by_type(entry: float) -> None:
    M = torch.eye(4)
    M[1, 1] = entry
    for A in (Dense(M), Counted(M, tags=PSD)):
        for ask in (lstsq, solve):
            with pytest.raises(NonFiniteError):
                ask(A, torch.ones(4), method="dense")
    with pytest.raises(NonFiniteError):
        solve(Counted(M, tags=PSD), torch.ones(4), method="cholesky")
