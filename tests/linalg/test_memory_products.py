"""Blocks of products under a budget: the same numbers, fewer vectors at a time, nothing measured where nobody asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hesse
from hesse.core.errors import MemoryBudgetError
from hesse.core.space import Space
from hesse.linalg.products import mm_within
from hesse.operators import LinearOperator, Sum

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
