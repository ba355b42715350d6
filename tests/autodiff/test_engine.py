"""Backward passes without the checks of torch.autograd.grad, beside it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.autodiff.engine import pull_along

REAL = torch.float64


def graph() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x, y, unused = (torch.randn(3, 4, dtype=REAL, generator=generator).requires_grad_() for _ in range(3))
    outputs = [(x[1:] * y[:-1]).sum(1), torch.nn.functional.pad(x, (1, 2)).exp()]
    return outputs, [x, y, unused], [torch.randn(5, *o.shape, dtype=REAL, generator=generator) for o in outputs]


@pytest.mark.parametrize("create_graph", [False, True])
def test_one_and_many_cotangents(create_graph: bool) -> None:
    outputs, inputs, cotangents = graph()
    many = pull_along(outputs, inputs, cotangents, create_graph=create_graph, batched=True)
    for k in range(5):
        given = [u[k] for u in cotangents]
        exact = torch.autograd.grad(outputs, inputs, given, retain_graph=True, allow_unused=True)
        one = pull_along(outputs, inputs, given, create_graph=create_graph)
        assert one[2] is None
        assert many[2] is None
        for mine, row, its in zip(one[:2], many[:2], exact[:2], strict=True):
            assert mine is not None
            assert row is not None
            torch.testing.assert_close(mine, its)
            torch.testing.assert_close(row[k], its)
            assert mine.requires_grad == row.requires_grad == create_graph


def test_gradients_of_batched_gradients() -> None:
    outputs, inputs, cotangents = graph()
    many = pull_along(outputs, inputs, cotangents, create_graph=True, batched=True)
    assert many[0] is not None
    (found,) = torch.autograd.grad(many[0].square().sum(), inputs[0], retain_graph=True)
    total = torch.zeros((), dtype=REAL)
    for k in range(5):
        rows = torch.autograd.grad(outputs, inputs[:1], [u[k] for u in cotangents], create_graph=True)
        total = total + rows[0].square().sum()
    torch.testing.assert_close(found, torch.autograd.grad(total, inputs[0])[0])


class Refusing(torch.autograd.Function):
    """Its backward is a function of the user's, which functorch's vmap does not let through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return Refusing.apply(x.sqrt()) * 2 * grads[0]


def test_what_functorch_refuses() -> None:
    x = torch.rand(4, dtype=REAL).requires_grad_()
    y: Any = Refusing.apply(x)
    u = torch.eye(4, dtype=REAL)
    (rows,) = pull_along([y], [x], [u], create_graph=False, batched=True)
    torch.testing.assert_close(rows, (2 * x).diag().detach())


def test_no_algebra_system_is_imported() -> None:
    """torch.autograd.grad imports sympy with the first cotangent that it is given, which takes most of a second."""
    program = (
        "import sys, torch, hesse.sparse as s\n"
        "p = s.prepare_jacobian(lambda u: u[1:] * u[:-1], torch.ones(5)); p(torch.ones(5)); p(torch.ones(5))\n"
        "h = s.prepare_hessian(lambda u: (u[1:] * u[:-1]).square().sum(), torch.ones(5)); h(torch.ones(5))\n"
        "sys.exit('sympy' in sys.modules or 'torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_many_cotangents_of_distances(p: float) -> None:
    """functorch's rule for their backward is wrong (torch 2.13)."""
    x, others, _ = (v.detach() for v in graph()[1])
    x.requires_grad_()
    distances = torch.cdist(x, others[:2], p=p)
    U = torch.randn(4, *distances.shape, dtype=REAL, generator=torch.Generator().manual_seed(1))
    many = pull_along([distances], [x], [U], create_graph=False, batched=True)
    for k in range(4):
        exact = torch.autograd.grad((distances * U[k]).sum(), x, retain_graph=True)[0]
        assert many[0] is not None
        torch.testing.assert_close(many[0][k], exact)
