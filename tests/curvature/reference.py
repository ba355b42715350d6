"""Dense references for curvature matrices: nested loops of plain autograd in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def parameters(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def flat_gradient(value: Tensor, leaves: list[Any], *, create_graph: bool = False) -> Tensor:
    grads = torch.autograd.grad(value, leaves, create_graph=create_graph, retain_graph=True, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(grads, leaves, strict=True)])


def hessian(model: nn.Module, loss: Callable[[Any, Any], Tensor], x: Any, y: Tensor) -> Tensor:
    leaves = parameters(model)
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        gradient = flat_gradient(loss(model(x), y), leaves, create_graph=True)
    return torch.stack([flat_gradient(entry, leaves) for entry in gradient])


def ggn(model: nn.Module, loss: Callable[[Any, Any], Tensor], x: Any, y: Tensor) -> Tensor:
    leaves = parameters(model)
    output = model(x)
    J = torch.stack([flat_gradient(entry, leaves) for entry in output.flatten()])
    free = output.detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss(free, y), free, create_graph=True)
    rows = [torch.autograd.grad(entry, free, retain_graph=True)[0].flatten() for entry in slope.flatten()]
    return J.mT @ torch.stack(rows) @ J


def outer_products(model: nn.Module, loss_sum: Callable[[Any, Any], Tensor], x: Tensor, y: Tensor) -> Tensor:
    leaves = parameters(model)
    rows = [flat_gradient(loss_sum(model(x[i : i + 1]), y[i : i + 1]), leaves) for i in range(len(x))]
    return torch.stack(rows).mT @ torch.stack(rows)


def difference(found: Tensor, expected: Tensor) -> float:
    """Relative Frobenius error."""
    return float((found - expected).norm() / expected.norm())
