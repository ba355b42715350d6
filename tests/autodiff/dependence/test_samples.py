"""Rows that are independent are found to be, and no others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.autodiff.dependence.samples import sample_dependence
from hesse.rules.sparsity.forms import sparsity_rules


class Reversed(torch.autograd.Function):
    """Does nothing, and pulls back in reverse order."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return g.flip(0)


class Rowwise(torch.autograd.Function):
    """Sums over all rows, and pulls back row by row."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.detach().sum(0, keepdim=True).expand_as(x).clone()

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return g


def attention(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x)


def in_place(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for i in range(len(x)):
        y[i] = x[i].cumsum(0)
    return y


def rows_by_loop(x: Tensor) -> Tensor:
    return torch.stack([row.sort().values for row in x])


INDEPENDENT: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "linear": (nn.Linear(3, 4), (5, 3)),
    "mlp": (nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 2)), (6, 3)),
    "cnn": (nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 2)), (4, 2, 6, 7)),
    "layer norm": (nn.LayerNorm(6), (3, 6)),
    "group norm": (nn.GroupNorm(2, 4), (3, 4, 5)),
    "batch norm in eval mode": (nn.BatchNorm1d(4).eval(), (3, 4)),
    "attention": (attention, (2, 3, 4)),
    "loops": (in_place, (4, 3)),
    "stack": (rows_by_loop, (4, 3)),
    "softmax": (lambda x: x.softmax(-1), (3, 4)),
    "constants of the batch": (lambda x: x * torch.arange(4.0).view(4, 1), (4, 3)),
    "custom": (Rowwise.apply, (4, 3)),
    "one row": (lambda x: x.sum(0, keepdim=True), (1, 3)),
    "no derivative": (lambda x: torch.ones(4, 2), (4, 3)),
}  # fmt: skip
MIXED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "batch norm": (nn.BatchNorm1d(3), "native_batch_norm"),
    "mean over the batch": (lambda x: x - x.mean(0), "mean"),
    "softmax over the batch": (lambda x: x.softmax(0), "_softmax"),
    "reversed": (lambda x: x.flip(0), "change their places"),
    "shifted": (lambda x: x.roll(1, 0), "change their places"),
    "Gram matrix": (lambda x: x @ x.T, "mm"),
    "sort": (lambda x: x.sort(0).values, "sort"),
    "custom": (Reversed.apply, "change their places"),
    "neighbors": (lambda x: x + F.pad(x[1:], (0, 0, 0, 1)), "add"),
    "another first axis": (lambda x: x.T, "first axis"),
    "a number": (lambda x: x.sum(), "first axis"),
    "branch": (lambda x: x if x.sum() > 0 else -x, "reads a value"),
}


@pytest.mark.parametrize("name", INDEPENDENT)
def test_independence_is_proved(name: str) -> None:
    f, shape = INDEPENDENT[name]
    found = sample_dependence(f, torch.randn(shape, generator=torch.Generator().manual_seed(0)), "rows")
    assert found.independent, found.reason
    assert not found.reason


@pytest.mark.parametrize("name", MIXED)
def test_rows_that_meet_are_found_with_the_op(name: str) -> None:
    f, reason = MIXED[name]
    found = sample_dependence(f, torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), "rows")
    assert not found.independent
    assert reason in found.reason


def test_leaves_of_trees_share_the_batch() -> None:
    x = {"a": torch.randn(4, 3), "b": torch.randn(4)}
    assert sample_dependence(lambda x: (x["a"].sum(1) * x["b"], x["b"]), x, "rows").independent
    crossed = sample_dependence(lambda x: (x["a"].sum(1) * x["b"].flip(0), x["b"]), x, "rows")
    assert not crossed.independent
    assert "mul at" in crossed.reason
    assert not sample_dependence(lambda x: x["a"], {**x, "b": torch.randn(3)}, "rows").independent


def test_an_op_without_a_rule_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sparsity_rules._rules, "_softmax")
    found = sample_dependence(lambda x: x.softmax(1), torch.randn(3, 2), "rows")
    assert not found.independent
    assert found.fallbacks == {"_softmax": 1}
