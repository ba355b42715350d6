"""Indices that are all different as given are compared where some occur twice too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hesse.check.module import check_module

from ..planted import draw


class Rows(torch.autograd.Function):
    """Rows of a table; `summed` says whether gradients of a row that is used twice are added up."""

    @staticmethod
    def forward(ctx, table, index, summed):
        ctx.save_for_backward(index)
        ctx.shape, ctx.summed = table.shape, summed
        return table[index]

    @staticmethod
    def backward(ctx, g):
        (index,) = ctx.saved_tensors
        grad = torch.zeros(ctx.shape, dtype=g.dtype)
        return grad.index_put((index,), g, accumulate=ctx.summed), None, None


class Lookup(nn.Module):
    def __init__(self, *, summed: bool) -> None:
        super().__init__()
        self.table, self.summed = nn.Parameter(draw(7, 3)), summed

    def forward(self, index):
        return torch.tanh(Rows.apply(self.table, index, self.summed))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("index", [[[3, 0], [5, 1]], [4, 2, 6]])
def test_duplicated_indices(index, dtype: torch.dtype) -> None:
    report = check_module(Lookup(summed=False).to(dtype), torch.tensor(index))
    assert "duplicated indices in 'inputs.0'" in {finding.check for finding in report.findings}
    assert check_module(Lookup(summed=True).to(dtype), torch.tensor(index)).ok


def test_offsets_stay_in_order() -> None:
    bag = nn.EmbeddingBag(7, 3, dtype=torch.float64)
    report = check_module(bag, torch.tensor([4, 2, 6, 1]), torch.tensor([0, 1, 3]))
    assert report.ok
    assert {row.check for row in report.compared if row.check.startswith("duplicated")} == {"duplicated indices in 'inputs.0'"}


class Parts(nn.Module):
    """Sums of consecutive parts of a vector, of lengths that add up to its own."""

    def forward(self, x, lengths):
        assert int(lengths.sum()) <= len(x)
        return torch.stack([part[: int(n)].sin().sum() for part, n in zip(x.split(4), lengths, strict=False)])


def test_sums_of_lengths_do_not_grow() -> None:
    report = check_module(Parts(), draw(9), torch.tensor([4, 3, 2]))
    assert report.ok
    assert "duplicated indices in 'inputs.1'" in {row.check for row in report.compared}
