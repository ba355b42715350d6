"""Fused weight normalization, whose own second derivative is wrong in PyTorch, against its definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import hesse
from hesse.core.errors import UnsupportedError


def data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    v, g, x = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (3, 1), (5, 4)))
    return v, g.abs() + 0.5, x


def fused(v: Tensor, g: Tensor) -> Tensor:
    return torch._weight_norm(v, g, 0)


def defined(v: Tensor, g: Tensor) -> Tensor:
    return v * g / v.square().sum(1, keepdim=True).sqrt()


def second_derivatives(norm: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    v, g, x = data()

    def f(v: Tensor) -> Tensor:
        return torch.tanh(x @ norm(v, g).mT).square().sum()

    def rows(v: Tensor) -> Tensor:
        return torch.tanh(norm(v, g)).square().sum(1)

    H = hesse.hessian_operator(f, v)
    third = torch.autograd.grad(hesse.hessian(f, v.requires_grad_()).hessian.square().sum(), v)[0]
    v.requires_grad_(False)
    return [
        hesse.hessian(f, v).hessian, hesse.laplacian(f, v).laplacian, hesse.dense(H), third,
        hesse.hessian(rows, v, structure="batched").hessian,
    ]  # fmt: skip


def test_second_derivatives_are_those_of_the_definition() -> None:
    for found, expected in zip(second_derivatives(fused), second_derivatives(defined), strict=True):
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("differentiate", [hesse.jacobian, hesse.hessian, hesse.linearize])
def test_reentrant_checkpointing_is_refused_by_name(differentiate: Callable[..., Any]) -> None:
    v, g, _ = data()
    with pytest.raises(UnsupportedError, match="use_reentrant=False"):
        differentiate(lambda v: checkpoint(lambda v: defined(v, g).sum(), v, use_reentrant=True), v)
