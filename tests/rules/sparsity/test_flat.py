"""Ops that are taken to have no slope: autograd agrees, for every overload and every operand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hesse.rules.sparsity.families import FLAT
from hesse.sparse.detect import sparsity

REAL = torch.float64
EDGES = torch.tensor([-1.0, 0.0, 1.0], dtype=REAL)
OPS: dict[str, list[Callable[[Tensor], Tensor]]] = {  # every overload that takes a floating-point tensor, by each such operand
    "sign": [torch.sign, lambda x: x.clone().sign_()],
    "signbit": [torch.signbit],
    "floor": [torch.floor, lambda x: x.clone().floor_()],
    "ceil": [torch.ceil, lambda x: x.clone().ceil_()],
    "round": [torch.round, lambda x: x.round(decimals=1), lambda x: x.clone().round_()],
    "trunc": [torch.trunc, torch.fix, lambda x: x.clone().trunc_()],
    "heaviside": [lambda x: torch.heaviside(x, torch.full((6,), 0.5, dtype=REAL))],
    "floor_divide": [lambda x: x // 0.3, lambda x: torch.floor_divide(x, x.flip(0)), lambda x: 2.0 // x,
                     lambda x: x.clone().floor_divide_(0.3)],
    "zeros_like": [torch.zeros_like],
    "ones_like": [torch.ones_like],
    "full_like": [lambda x: torch.full_like(x, 2.0)],
    "empty_like": [lambda x: torch.empty_like(x).fill_(1.0)],
    "rand_like": [torch.rand_like],
    "randn_like": [torch.randn_like],
    "randint_like": [lambda x: torch.randint_like(x, 5), lambda x: torch.randint_like(x, 2, 5)],
    "new_empty": [lambda x: x.new_empty(3).fill_(1.0)],
    "new_empty_strided": [lambda x: x.new_empty_strided((3,), (1,)).fill_(1.0)],
    "new_full": [lambda x: x.new_full((3,), 2.0)],
    "new_ones": [lambda x: x.new_ones(3)],
    "new_zeros": [lambda x: x.new_zeros(3)],
    "bernoulli": [lambda x: torch.bernoulli(x.sigmoid()), lambda x: torch.bernoulli(x, 0.5),
                  lambda x: x.clone().bernoulli_(0.5), lambda x: torch.zeros(6, dtype=REAL).bernoulli_(x.sigmoid())],
    "zero": [lambda x: x.clone().zero_(), lambda x: torch.ops.aten.zero(x)],
    "argmax": [torch.argmax, lambda x: x.view(2, 3).argmax(1)],
    "argmin": [torch.argmin, lambda x: x.view(2, 3).argmin(1)],
    "bucketize": [lambda x: torch.bucketize(x, EDGES), lambda x: torch.bucketize(EDGES, x.sort()[0])],
    "searchsorted": [lambda x: torch.searchsorted(EDGES, x), lambda x: torch.searchsorted(x.sort()[0], EDGES),
                     lambda x: torch.searchsorted(EDGES, x, side="right")],
    "histc": [lambda x: torch.histc(x, 4, -2.0, 2.0)],
    "bincount": [lambda x: torch.bincount(torch.tensor([0, 2, 2, 1, 0, 0]), weights=x)],
    "count_nonzero": [torch.count_nonzero, lambda x: x.view(2, 3).count_nonzero(1)],
    "uniform": [lambda x: x.clone().uniform_()],
    "exponential": [lambda x: x.clone().exponential_()],
    "geometric": [lambda x: x.clone().geometric_(0.5)],
    "cauchy": [lambda x: x.clone().cauchy_()],
    "log_normal": [lambda x: x.clone().log_normal_()],
    "random": [lambda x: x.clone().random_(), lambda x: x.clone().random_(4), lambda x: x.clone().random_(1, 4)],
    "normal": [lambda x: x.clone().normal_(), lambda x: torch.normal(x), lambda x: torch.normal(x, 1.0),
               lambda x: torch.normal(0.0, x.exp()), lambda x: torch.normal(x, x.exp())],
    "isnan": [torch.isnan],
    "isinf": [torch.isinf],
    "poisson": [lambda x: torch.poisson(x.exp())],
    "multinomial": [lambda x: torch.multinomial(x.exp(), 2)],
}  # fmt: skip


def test_every_op_of_the_list_is_here() -> None:
    assert set(OPS) == set(FLAT)


@pytest.mark.parametrize(("name", "number"), [(name, i) for name in OPS for i in range(len(OPS[name]))])
def test_autograd_knows_no_slope_either(name: str, number: int) -> None:
    f = OPS[name][number]
    for seed in range(5):
        x = torch.randn(6, dtype=REAL, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        y = f(x)
        if not y.requires_grad:
            continue
        try:
            (slope,) = torch.autograd.grad(y.sum(), x, allow_unused=True)
        except RuntimeError as error:
            assert "is not implemented" in str(error)  # nor has it a derivative of any other kind
        else:
            assert slope is None or not slope.any()
    found = sparsity(lambda t: f(t).to(REAL), x.detach())
    assert found.pattern.nnz == 0
    assert not found.fallbacks
