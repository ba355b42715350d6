"""Blocks of vectors: whichever way they go, the products are the same, and the faster way is found."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import hesse
from hesse.autodiff.block_ways import LARGE_GRAPH_BYTES, SMALL_GRAPH_BYTES, BlockWays

from .programs import REAL, ReverseOnlySquare, seeded

M = seeded(4, 3)
CPU = torch.device("cpu")


class Counted:
    """The products with M, how often each way was taken, and how long each takes a vector on a clock of its own."""

    def __init__(self, one: float = 0.0, together: float = 0.0) -> None:
        self.seconds, self.calls, self.now = (one, together), [0, 0], 0.0

    def one(self, parts: list[Tensor]) -> list[Tensor]:
        self.calls[0] += 1
        self.now += self.seconds[0]
        return [M @ parts[0], parts[0].sum()]

    def together(self, parts: list[Tensor]) -> list[Tensor]:
        self.calls[1] += len(parts[0])
        self.now += self.seconds[1] * len(parts[0])
        return [parts[0] @ M.mT, parts[0].sum(1)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16])
@pytest.mark.parametrize("graph_bytes", [0, SMALL_GRAPH_BYTES, LARGE_GRAPH_BYTES])
def test_products_are_the_same_in_every_use(count: int, graph_bytes: int) -> None:
    work = Counted()
    ways = BlockWays(work.one, work.together, graph_bytes, CPU)
    for use in range(5):
        V = seeded(count, 3, seed=use)
        for follow in (False, True):
            found = ways([V], follow=follow)
            torch.testing.assert_close(found[0], V @ M.mT, rtol=1e-13, atol=1e-13)
            torch.testing.assert_close(found[1], V.sum(1), rtol=1e-13, atol=1e-13)
    if graph_bytes == LARGE_GRAPH_BYTES:
        assert work.calls == [10 * count, 0], "large graphs are never batched"


@pytest.mark.parametrize("graph_bytes", [0, SMALL_GRAPH_BYTES])
@pytest.mark.parametrize(("one", "together", "winner"), [(0.002, 0.0, 1), (0.0, 0.002, 0)])
def test_the_faster_way_is_taken_once_both_were_timed(
    graph_bytes: int, one: float, together: float, winner: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Counted(one, together)
    monkeypatch.setattr("hesse.autodiff.block_ways.time", SimpleNamespace(perf_counter=lambda: work.now))
    ways = BlockWays(work.one, work.together, graph_bytes, CPU)
    for _ in range(2):
        ways([seeded(8, 3)], follow=False)
    assert min(work.calls) > 0
    before = list(work.calls)
    ways([seeded(8, 3)], follow=False)
    assert work.calls[winner] == before[winner] + 8 and work.calls[1 - winner] == before[1 - winner]


def test_what_cannot_be_batched_is_looped_and_not_tried_again() -> None:
    attempts = 0

    def refuses(parts: list[Tensor]) -> list[Tensor]:
        nonlocal attempts
        attempts += 1
        raise RuntimeError("no batching rule")

    ways = BlockWays(Counted().one, refuses, 0, CPU)
    for _ in range(3):
        torch.testing.assert_close(ways([seeded(6, 3)], follow=False)[0], seeded(6, 3) @ M.mT)
    assert attempts == 1


@pytest.mark.parametrize("square", [torch.square, ReverseOnlySquare.apply])
def test_blocks_of_operators_equal_single_products(square: Any) -> None:
    W, x = seeded(5, 3), seeded(3, seed=1)

    def f(x: Tensor) -> Tensor:
        return torch.tanh(W @ square(x))

    J, H = hesse.linearize(f, x).jacobian, hesse.hessian_operator(lambda x: f(x).square().sum(), x)
    for A, width in ((J, 3), (J.T, 5), (H, 3)):
        for count in (0, 1, 7):
            V = seeded(count, width, seed=3)
            for _ in range(4):
                found = A.mm(V)
                expected = torch.stack([A @ v for v in V]) if count else torch.zeros(0, A.out_space.dim, dtype=REAL)
                torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_blocks_can_be_differentiated() -> None:
    x, V = seeded(3).requires_grad_(), seeded(6, 3, seed=1).requires_grad_()
    H = hesse.hessian_operator(lambda x: (x**4).sum(), x)
    found = torch.autograd.grad(H.mm(V).sum(), (x, V))
    assert torch.allclose(found[0], (24 * x * V).sum(0)) and torch.allclose(found[1], (12 * x**2).expand(6, 3))
