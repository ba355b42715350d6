"""Two small functions of one vector, on which dense derivatives are measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class SmallFunctions:
    """Two functions of one vector: ``f: R^n -> R^m`` and ``g: R^n -> R``."""

    f: Callable[[Tensor], Tensor]
    g: Callable[[Tensor], Tensor]
    x: Tensor  # [n]

    def double(self) -> SmallFunctions:
        """The same functions at the same point in float64 (their constants follow the dtype of x)."""
        return replace(self, x=self.x.double())

    def gradient_of(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """The unit of cost: one forward and one backward pass (of the sum of the outputs)."""
        x = self.x.detach().requires_grad_()
        return torch.autograd.grad(function(x).sum(), x)[0]


def make_functions() -> SmallFunctions:
    """``f: R^100 -> R^60``, ``g: R^100 -> R``, both with a dense derivative, at a fixed point."""
    generator = torch.Generator().manual_seed(20)
    A, B = (torch.randn(60, 100, generator=generator, dtype=torch.float64) / 10 for _ in range(2))
    constants = {dtype: (A.to(dtype), B.to(dtype)) for dtype in (torch.float32, torch.float64)}

    def f(x: Tensor) -> Tensor:
        A, B = constants[x.dtype]
        return torch.tanh(A @ x) * torch.sin(B @ x.square())

    def g(x: Tensor) -> Tensor:
        A, _ = constants[x.dtype]
        return torch.logsumexp(A @ x, 0) + torch.cos(x[1:] * x[:-1]).sum()

    return SmallFunctions(f, g, torch.randn(100, generator=generator))
