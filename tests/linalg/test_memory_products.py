"""Blocks of products under a budget: the same numbers, fewer vectors at a time, nothing measured where nobody asked."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import hesse
from hesse.core.errors import MemoryBudgetError, NotConvergedError
from hesse.core.growth import Growth, settle
from hesse.core.memory import given_budget
from hesse.core.space import Space
from hesse.linalg.products import mm_within
from hesse.operators import Function, LinearOperator, Sum, Tag

MIB = 2**20
DIM = 40


class Counted(LinearOperator):
    """A matrix that notes how many vectors it is given at once, and finds no memory for more than it may."""

    def __init__(self, most: int = 10**9, graph_bytes: int | None = MIB) -> None:
        torch.manual_seed(2)
        self.matrix = torch.randn(30, DIM, dtype=torch.float64)
        self.in_space, self.out_space = (Space.of(torch.zeros(n, dtype=torch.float64)) for n in (DIM, 30))
        self.most, self.seen = most, list[int]()
        if graph_bytes is not None:
            self.graph_bytes = graph_bytes

    def mv(self, v: Any) -> Any:
        return self.matrix @ v

    def mm(self, V: Any) -> Any:
        self.seen.append(len(V))
        if len(V) > self.most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99999999 bytes.")
        return V @ self.matrix.mT

    def transpose(self) -> LinearOperator:
        raise NotImplementedError


def block(count: int) -> Tensor:
    return torch.randn(count, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def test_without_a_budget_the_block_stays_whole() -> None:
    A = Counted()
    torch.testing.assert_close(mm_within(A, block(50)), block(50) @ A.matrix.mT)
    assert A.seen == [50]


def test_under_a_budget_it_is_split_by_the_graph() -> None:
    A = Counted()
    torch.testing.assert_close(mm_within(A, block(50), "20MiB"), block(50) @ A.matrix.mT)
    assert len(A.seen) > 2
    assert A.seen[0] <= 5
    assert sum(A.seen) == 50


def test_operators_that_do_not_tell_their_graph_take_blocks_whole() -> None:
    A = Counted(graph_bytes=None)
    mm_within(A, block(50), "1MiB")
    assert A.seen == [50]


def test_failures_halve() -> None:
    A = Counted(most=7)
    torch.testing.assert_close(mm_within(A, block(50), "8GiB"), block(50) @ A.matrix.mT)
    assert A.seen[:4] == [50, 25, 12, 6]
    with pytest.raises(MemoryBudgetError) as caught:
        mm_within(Counted(most=0), block(9), "8GiB")
    assert caught.value.least > 8 * 2**30


def test_questions_split_their_blocks() -> None:
    torch.manual_seed(0)
    A = torch.randn(60, 60, dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        return torch.tanh(A @ x).square().sum()

    x = torch.randn(60, dtype=torch.float64)
    H = hesse.hessian_operator(f, x)
    expected = torch.autograd.functional.hessian(f, x)
    for question, reference in ((hesse.dense, expected), (hesse.diagonal, expected.diagonal())):
        torch.testing.assert_close(question(H, memory="300KiB"), reference)
    with hesse.memory("300KiB"):
        shifted = hesse.dense(Sum(H, hesse.identity(H.in_space)))
    torch.testing.assert_close(shifted, expected + torch.eye(60, dtype=torch.float64))


N = 120
ONES = torch.ones(N, dtype=torch.float64)
ASKED: dict[str, Callable[[LinearOperator], Any]] = {
    "dense": hesse.dense,
    "dense of a sum": lambda A: hesse.dense(2 * A + hesse.identity(A.in_space)),
    "factor": lambda A: hesse.factor(A).solve(ONES),
    "eigsh exact": lambda A: hesse.eigsh(A, 2, method="exact").values,
    "eigsh lanczos": lambda A: hesse.eigsh(A, 2, method="lanczos").values,
    "eigsh lobpcg": lambda A: hesse.eigsh(A, 2, method="lobpcg").values,
    "svd exact": lambda A: hesse.svd(A, 2, method="exact").values,
    "svd lanczos": lambda A: hesse.svd(A, 2, method="lanczos").values,
    "spectrum exact": lambda A: hesse.spectrum(A, method="exact").nodes,
    "spectrum lanczos": lambda A: hesse.spectrum(A, method="lanczos", atol=0.5).weights.sum(),
    "logdet exact": lambda A: hesse.logdet(A, method="exact").value,
    "logdet lanczos": lambda A: hesse.logdet(A, method="lanczos", rtol=0.1).value,
    "slogdet": lambda A: hesse.slogdet(A).logabs,
    "norm exact": lambda A: hesse.norm(A, ord=2, method="exact").value,
    "norm fro": lambda A: hesse.norm(A, method="exact").value,
    "condition": lambda A: hesse.condition(A, method="exact").value,
    "solve": lambda A: hesse.solve(A, ONES, method="dense"),
    "solve cholesky": lambda A: hesse.solve(A, ONES, method="cholesky"),
    "solve cg": lambda A: hesse.solve(A, ONES.expand(3, N), method="cg"),
    "solve minres": lambda A: hesse.solve(A, ONES.expand(3, N), method="minres"),
    "solve lsmr": lambda A: hesse.solve(A, ONES.expand(3, N), method="lsmr"),
    "lstsq lsmr": lambda A: hesse.lstsq(A, ONES, method="lsmr"),
    "lstsq damped": lambda A: hesse.lstsq(A, ONES, method="lsmr", damping=0.5),
    "nystrom": lambda A: hesse.nystrom(A, 7).vectors.abs().sum(),
    "dense of a product": lambda A: hesse.dense(hesse.operators.Composed(A, A)),
    "dense of a congruence": lambda A: hesse.dense(hesse.operators.Congruence(A, A)),
    "dense of blocks": lambda A: hesse.dense(hesse.operators.BlockDiagonal({"a": A, "b": hesse.identity(A.in_space)})),
    "lstsq": lambda A: hesse.lstsq(A, ONES, method="dense"),
    "pinv": lambda A: hesse.pinv(A, rtol=1e-6) @ ONES,
    "rank": hesse.rank,
    "null space": hesse.null_space,
    "trace": lambda A: hesse.trace(A, method="exact").value,
    "trace hutchinson": lambda A: hesse.trace(A, method="hutchinson", rtol=0.5).value,
    "trace hutch++": lambda A: hesse.trace(A, method="hutch++", rtol=1e-9).value,
    "trace xtrace": lambda A: hesse.trace(A, method="xtrace", rtol=1e-9).value,
    "woodbury": lambda A: hesse.solve(hesse.operators.Congruence(A) + 2 * hesse.identity(A.in_space), ONES, method="woodbury"),
    "diagonal": hesse.diagonal,
    "diagonal hutchinson": lambda A: hesse.diagonal(A, method="hutchinson", rtol=0.5),
}


@pytest.mark.parametrize("name", ASKED)
def test_the_least_that_is_named_suffices(name: str) -> None:
    torch.manual_seed(2)
    factor = torch.randn(N, N, dtype=torch.float64)
    matrix = factor @ factor.mT / N + torch.eye(N, dtype=torch.float64)
    space = Space.of(matrix[0])
    tags = frozenset({Tag.SYMMETRIC, Tag.HERMITIAN, Tag.PSD})
    A = Function(space, space, lambda v: matrix @ v, tags=tags)
    with hesse.memory(1000), pytest.raises(MemoryBudgetError) as caught:
        ASKED[name](A)
    least = caught.value.least
    assert least > 1000
    with hesse.memory(least):
        found = ASKED[name](A)
    rtol = 0.2 if name == "logdet lanczos" else 1e-6  # an estimate, from fewer probes
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(ASKED[name](A)), rtol=rtol, atol=1e-8)


def test_products_beside_vectors_keep_to_what_these_leave() -> None:
    space, seen = Space.of(ONES), list[int | None]()

    def product(v: Tensor) -> Tensor:
        seen.append(given_budget(None))
        return 2 * v

    A = Function(space, space, product, tags=frozenset({Tag.SYMMETRIC, Tag.HERMITIAN, Tag.PSD}))
    with hesse.memory("1MiB"):
        hesse.dense(A)
        for method in ("lanczos", "lobpcg"):
            hesse.eigsh(A, 2, method=method, generator=torch.Generator().manual_seed(0))
    beside = [budget for budget in seen if budget is not None and budget < MIB - 10 * ONES.nbytes]
    assert len(seen) - 4 <= len(beside) < len(seen)  # but for the products that certify what was found, alone
    seen.clear()
    hesse.dense(A)
    assert seen[0] is None


KNOWN: dict[str, Callable[[], LinearOperator]] = {
    "Dense": lambda: hesse.operators.Dense(torch.ones(30, 20)),
    "LowRank": lambda: hesse.operators.LowRank(torch.ones(30, 2), None, torch.ones(20, 2)),
    "Kronecker": lambda: hesse.operators.Kronecker(torch.ones(6, 4), torch.ones(5, 5)),
    "Diagonal": lambda: hesse.operators.Diagonal(torch.arange(25.0)),
    "Identity": lambda: hesse.identity(Space.of(torch.zeros(25))),
    "Composed": lambda: hesse.operators.Dense(torch.ones(30, 3)) @ hesse.operators.Dense(torch.ones(3, 20)),
    "Congruence": lambda: hesse.operators.Congruence(hesse.operators.Dense(torch.ones(3, 25))),
}


@pytest.mark.parametrize("name", KNOWN)
def test_matrices_by_structure_are_refused_where_they_do_not_fit(name: str) -> None:
    A = KNOWN[name]()
    matrix = hesse.dense(A)
    with pytest.raises(MemoryBudgetError) as caught:
        hesse.dense(A, memory=matrix.nbytes - 1)
    assert caught.value.least >= matrix.nbytes
    assert torch.equal(hesse.dense(A, memory=caught.value.least), matrix)


def test_a_product_that_does_not_fit_beside_its_factors_is_formed_by_columns() -> None:
    torch.manual_seed(3)
    first, second = (hesse.operators.Dense(torch.randn(40, 40, dtype=torch.float64)) for _ in range(2))
    for A, expected in (
        (first @ second, first.matrix @ second.matrix),
        (hesse.operators.Congruence(first, second), first.matrix.mT @ second.matrix @ first.matrix),
    ):
        with pytest.raises(MemoryBudgetError) as caught:
            hesse.dense(A, memory=1000)
        assert expected.nbytes < caught.value.least < 3 * expected.nbytes
        torch.testing.assert_close(hesse.dense(A, memory=caught.value.least), expected)


def halved(A: LinearOperator) -> LinearOperator:
    return hesse.operators.Diagonal(torch.full((A.shape[0],), 0.5, dtype=torch.float64), frozenset({Tag.PSD}))


ITERATIVE: dict[str, Callable[[LinearOperator, Tensor], Any]] = {
    "cg": lambda A, b: hesse.solve(A, b, method="cg"),
    "minres": lambda A, b: hesse.solve(A, b, method="minres"),
    "lsmr": lambda A, b: hesse.solve(A, b, method="lsmr"),
    "preconditioned lsmr": lambda A, b: hesse.solve(A, b, method="lsmr", preconditioner=halved(A)),
    "lstsq": lambda A, b: hesse.lstsq(A, b, method="lsmr"),
    "damped": lambda A, b: hesse.lstsq(A, b, method="lsmr", damping=1e-20),
}


def shifted_rolls(dim: int, seen: list[int]) -> LinearOperator:
    """A diagonally dominant matrix, which notes how many vectors it is given at once."""
    scale = torch.linspace(1, 3, dim, dtype=torch.float64)

    class Rolls(LinearOperator):
        in_space = out_space = Space.of(scale)
        tags = frozenset({Tag.SYMMETRIC, Tag.HERMITIAN, Tag.PSD})

        def mv(self, v: Any) -> Any:
            return self.mm(v[None])[0]

        def mm(self, V: Any) -> Any:
            seen.append(len(V))
            return scale * V + 0.1 * V.roll(1, -1) + 0.1 * V.roll(-1, -1)

        def transpose(self) -> LinearOperator:
            return self

    return Rolls()


@pytest.mark.parametrize("name", ITERATIVE)
def test_right_hand_sides_are_worked_off_in_groups(name: str) -> None:
    dim, seen = 700, list[int]()
    A = shifted_rolls(dim, seen)
    b = torch.randn(2, 5, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    b[1, 2] = 0
    whole = ITERATIVE[name](A, b)
    assert max(seen) >= 9
    torch.testing.assert_close((A @ whole).reshape(10, dim), b.reshape(10, dim), rtol=0, atol=1e-6)
    seen.clear()
    with hesse.memory(150 * 8 * dim):
        found = ITERATIVE[name](A, b)
    assert found.shape == b.shape and max(seen[:-1]) <= 5
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-6)


def test_a_row_that_fails_is_told_whatever_its_group() -> None:
    dim = 400
    A = shifted_rolls(dim, [])
    b = torch.ones(6, dim, dtype=torch.float64)
    with hesse.memory(100 * 8 * dim):
        found = hesse.solve(A, b, method="minres", full=True)
        assert found.residual <= 1e-8 and found.forward_error <= 1e-7 and found.condition > 1
        with pytest.raises(NotConvergedError) as caught:
            hesse.solve(A, b, method="cg", max_iterations=2)
    partial = caught.value.partial
    assert partial.residual == pytest.approx(float(((b - A @ partial.value).norm(dim=-1) / b.norm(dim=-1)).max()), rel=1e-9)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize("method", ["cg", "minres"])
def test_growth_of_iterative_solutions_stays_within_the_budget(method: str) -> None:
    """48 right-hand sides of 50,000 numbers: 18 MiB, and their solutions; without a budget three times as much as with one."""
    A = shifted_rolls(50_000, [])
    b = torch.ones(48, 50_000, dtype=torch.float64)
    budget = {"cg": 56 * MIB, "minres": 60 * MIB}[method]
    hesse.solve(A, b[:1], method=method)
    grown: list[int] = []
    for _ in range(3):  # the least of them: other threads of the process can only add
        settle()
        with hesse.memory(budget), Growth(torch.device("cpu")) as growth:
            hesse.solve(A, b, method=method)
        grown.append(growth.bytes)
        if growth.bytes <= 1.1 * budget:
            break
    assert min(grown) <= 1.2 * budget
