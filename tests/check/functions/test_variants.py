"""Errors that only show elsewhere: regions, batch sizes, no elements, repeated indices, ties, zeros, vmap, sparse leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hesse.check import check_derivatives

from ..planted import Planted, draw, planted


def checks(report) -> str:
    return "\n".join(f.check for f in report.findings)


def flushed(g, x):
    return g * x.cos() * (x < 4)


def centered(g, x):
    return g - g.mean(0) if len(x) > 1 else g


def wrong_when_odd(g, x):
    return g * x.cos() * (1.1 if len(x) == 5 else 1.0)


def all_ties(g, x):
    return g[:, None] * (x == x.amax(1, keepdim=True))


def two_at_zero(g, x):
    return g * ((x >= 0).to(x) + (x == 0).to(x))


class Lookup(torch.autograd.Function):
    """Rows of a table; the gradients of a row that occurs twice are not added up."""

    @staticmethod
    def forward(ctx, table, index):
        ctx.save_for_backward(table, index)
        return table[index]

    @staticmethod
    def backward(ctx, g):
        table, index = ctx.saved_tensors
        grad = torch.zeros_like(table)
        grad[index] = g
        return grad, None


INDEX = torch.tensor([2, 0, 4])
FULL: dict[str, tuple[Any, Any, str]] = {
    "region": (planted(torch.sin, flushed), 0.3 * draw(3, 2), "reverse mode at"),
    "batch of one": (planted(lambda x: x - x.mean(0), centered), draw(4, 2), "reverse mode at 1 rows"),
    "odd batch": (planted(torch.sin, wrong_when_odd), draw(4, 2), "reverse mode at 5 rows"),
    "ties": (planted(lambda x: x.amax(1), all_ties), draw(3, 6), "reverse mode at equal elements"),
    "zero": (planted(torch.relu, two_at_zero), draw(3, 2), "reverse mode at zero"),
    "index twice": (lambda t: Lookup.apply(*t), (draw(5, 2), INDEX), "duplicated indices in '1'"),
}  # fmt: skip


@pytest.mark.parametrize("name", FULL)
def test_errors_elsewhere_are_found_at_level_full(name: str) -> None:
    f, x, where = FULL[name]
    report = check_derivatives(f, x, level="full")
    assert where in checks(report), str(report)
    assert "reverse mode" not in checks(report).splitlines()  # at the point itself all is well


RIGHT = {
    "relu": torch.relu, "leaky": lambda x: x.relu() - 0.1 * (-x).relu(),
    "logits": lambda x: x.relu() + (-x.abs()).exp().log1p(),
    "max": lambda x: x.amax(1), "sort": lambda x: x.sort(1).values, "median": lambda x: x.contiguous().median(1).values,
    "range": lambda x: x.amax(1) - x.amin(1), "clamp": lambda x: x.clamp(-0.5, 0.5), "norm": lambda x: x.norm(dim=1),
    "batch statistics": lambda x: (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt(),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_kinks_elsewhere_raise_no_alarm(name: str) -> None:
    report = check_derivatives(RIGHT[name], draw(4, 5), level="full")
    assert report.ok, str(report)


def test_a_gradient_of_nothing_is_zero() -> None:
    def rule(g, x, w):
        return g * w, torch.ones_like(w) if not len(x) else (g * x).sum(0)

    report = check_derivatives(lambda t: planted(lambda x, w: x * w, rule)(*t), (draw(3, 2), draw(2, seed=1)), level="full")
    assert "no elements" in checks(report), str(report)


class Leaky(torch.autograd.Function):
    """A sine whose rule for `vmap` mixes samples."""

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()

    @staticmethod
    def vmap(info, in_dims, x):
        return x.movedim(in_dims[0], 0).mean(0, keepdim=True).expand(x.movedim(in_dims[0], 0).shape).sin(), 0


def test_a_wrong_rule_for_vmap_is_found_and_a_missing_one_noted() -> None:
    assert "value under vmap" in checks(check_derivatives(Leaky.apply, draw(3, 2), level="full"))
    report = check_derivatives(planted(torch.sin, lambda g, x: g * x.cos()), draw(3))
    assert report.ok and any(note.startswith("no vmap") for note in report.notes), str(report)


@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_sparse_leaves_move_where_they_store_values(layout: str) -> None:
    dense = draw(4, 3) * (draw(4, 3, seed=1) > 0)
    sparse = {"coo": dense.to_sparse(), "csr": dense.to_sparse_csr(), "csc": dense.to_sparse_csc()}[layout]
    report = check_derivatives(lambda t: (t[0] @ t[1]).sin(), (sparse, draw(3, 2, seed=2)))
    assert report.ok, str(report)
    wrong = planted(torch.sin, lambda g, x: 1.2 * g * x.cos())
    report = check_derivatives(lambda t: wrong(t[0].to_dense()), (sparse,))
    (finding, *_) = report.findings
    assert finding.leaf == "0" and "factor 1.200" in finding.diagnosis and len(finding.index or ()) == 1


def test_a_random_backward_pass_is_told_from_dropout() -> None:
    noisy = planted(torch.sin, lambda g, x: g * x.cos() * (1 + 1e-3 * torch.randn_like(x)))
    assert "second backward pass of one graph" in checks(check_derivatives(noisy, draw(3)))
    calls: list[int] = []
    report = check_derivatives(lambda x: calls.append(1) or x * len(calls), draw(3))
    assert checks(report) == "same value twice" and "no dropout" in str(report)
    assert check_derivatives(lambda x: torch.nn.functional.dropout(x, 0.4) * x, draw(6)).ok


def test_a_cache_keyed_by_the_tensor_is_found() -> None:
    known: dict[int, torch.Tensor] = {}

    def forward(x):
        return known.setdefault(x.data_ptr(), x.detach() ** 3)

    f = planted(forward, lambda g, x: 3 * g * x**2)
    assert not check_derivatives(f, draw(3)).ok


def test_an_error_raised_in_a_second_pass_is_a_finding() -> None:
    class Once(Planted):
        @staticmethod
        def backward(ctx, g):
            del ctx.rule.token
            return None, None, g * ctx.saved_tensors[0].cos()

    def f(x):
        def rule():
            return None

        rule.token = 1  # pyright: ignore[reportFunctionMemberAccess]
        return Once.apply(rule, torch.sin, x)

    report = check_derivatives(f, draw(3))
    assert "raises AttributeError" in str(report) and report.findings[0].check == "second backward pass of one graph"
