"""Which tensors share memory, with others or within themselves."""

from __future__ import annotations

import torch
from torch import Tensor

import hesse
from hesse.autodiff.ownership import sharing


def test_who_shares_memory() -> None:
    given, row = torch.randn(4, 3), torch.randn(3)
    own = torch.randn(5, 3)
    tensors = [given.T, own, own[1:], row.expand(2, 3), torch.randn(3, 2).T, torch.empty(0).expand(2, 0), given[:0],
               own.as_strided((2, 2), (1, 1)), torch.eye(3).to_sparse(), torch.randn(2)]  # fmt: skip
    assert sharing(tensors, [given]) == [0, 2, 3, 7]


def test_results_of_the_first_compiled_run_can_be_written_to() -> None:
    def f(p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        middle = p * 2
        return middle.sum(), middle.sum().expand(3), middle

    df = hesse.grad(f, compile="replay")
    for start in (1.0, 2.0, 3.0):
        p = torch.full((3,), start)
        gradient, total, spread, middle = df(p)
        for result in (gradient, spread, middle):
            result += torch.arange(3.0)  # raises where elements share memory
        torch.testing.assert_close(p, torch.full((3,), start))
        torch.testing.assert_close(total, torch.tensor(6 * start))
        torch.testing.assert_close(spread, 6 * start + torch.arange(3.0))
        torch.testing.assert_close(middle, 2 * start + torch.arange(3.0))
        torch.testing.assert_close(gradient, 2 + torch.arange(3.0))
