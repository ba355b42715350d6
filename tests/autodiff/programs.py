"""Programs that are hard to differentiate, and reference derivatives that use nothing of hesse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

REAL = torch.float64


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = REAL) -> Tensor:
    """Standard normal numbers from a generator of their own."""
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def differences(f: Callable[[Tensor], Tensor], x: Tensor, h: float = 1e-2) -> Tensor:
    """The Jacobian ``[*out, *in]`` by central differences of eighth order (float64, error about 1e-13 for smooth f)."""
    weights = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}
    columns = []
    with torch.no_grad():
        for i in range(x.numel()):
            step = torch.zeros_like(x).flatten()
            step[i] = h
            step = step.reshape(x.shape)
            columns.append(sum(w * (f(x + k * step) - f(x - k * step)) for k, w in weights.items()) / h)
    return torch.stack(columns, -1).reshape(columns[0].shape + x.shape)


def by_loops(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The Jacobian by one plain backward pass for each element of the value."""
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        y = f(x)
        elements = list(y.flatten())
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    rows = [torch.autograd.grad(element, x, **options)[0] for element in elements]
    return torch.stack(rows).reshape(y.shape + x.shape)


def hessian_by_loops(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The Hessian by one plain double-backward pass for each element of x."""

    def gradient(t: Tensor) -> Tensor:
        return torch.autograd.grad(f(t), t, create_graph=True)[0]

    return by_loops(gradient, x)


class LyingSquare(torch.autograd.Function):
    """x**2, whose forward-mode derivative is right for the first two elements of each row and doubled for the others."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**2

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g * ctx.saved_tensors[0]

    @staticmethod
    def jvp(ctx: Any, t: Tensor) -> Tensor:
        factor = 1.0 + (torch.arange(t.shape[-1]) > 1).to(t.dtype)
        return 2 * t * ctx.saved_tensors[0] * factor


class ReverseOnlySquare(torch.autograd.Function):
    """x**2 in the old style: no jvp, no vmap, and a backward that reads a value into Python."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        assert g.sum().item() is not None
        return TwiceProduct.apply(g, ctx.saved_tensors[0])


class TwiceProduct(torch.autograd.Function):
    """2 a b, as unwilling as `ReverseOnlySquare`."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return 2 * a * b

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        assert g.sum().item() is not None
        a, b = ctx.saved_tensors
        return 2 * g * b, 2 * g * a
