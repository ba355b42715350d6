"""The derivative of a convolution by its weight, against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from hesse.convolutions.weight_gradient import weight_gradient
from tests.convolutions.dense_oracle import CASES, Case


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_that_of_torch(case: Case) -> None:
    weight = case.weight().requires_grad_()
    x = torch.randn(3, *case.in_shape, dtype=case.dtype)
    y = case.images(weight, x)
    v = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, weight, v)
    found = weight_gradient(case.operator(weight).geometry, x, v)
    assert float((found - expected).norm()) <= 1e-13 * float(expected.norm())


@pytest.mark.parametrize("case", [CASES[0], CASES[4], CASES[7], CASES[9], CASES[14]], ids=str)
def test_its_derivatives(case: Case) -> None:
    g = case.operator(case.weight()).geometry
    x = torch.randn(2, *g.in_shape, dtype=case.dtype, requires_grad=True)
    y = torch.randn(2, *g.out_shape, dtype=case.dtype, requires_grad=True)
    assert gradcheck(lambda x, y: weight_gradient(g, x, y), (x, y), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(lambda x, y: weight_gradient(g, x, y), (x, y), fast_mode=True)
    found = torch.func.vmap(lambda v: weight_gradient(g, x, v))(torch.stack([y, 2 * y]))
    assert torch.allclose(found[1], 2 * weight_gradient(g, x, y))
