"""Blocks of products under a budget: the same numbers, fewer vectors at a time, nothing measured where nobody asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import hesse
from hesse.core.errors import MemoryBudgetError
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
    "lstsq": lambda A: hesse.lstsq(A, ONES, method="dense"),
    "pinv": lambda A: hesse.pinv(A, rtol=1e-6) @ ONES,
    "rank": hesse.rank,
    "null space": hesse.null_space,
    "trace": lambda A: hesse.trace(A, method="exact").value,
    "trace hutchinson": lambda A: hesse.trace(A, method="hutchinson", rtol=0.5).value,
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
