"""Dense curvature matrices by definition: double backward of the batch loss, explicit ``J.T H J``, loops. No hesse here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.parameters import oracle

Loss = Callable[[Any, Any], Tensor]


def hessian(model: nn.Module, loss: Loss, inputs: Any, targets: Any) -> Tensor:
    """The Hessian of the batch loss by all trainable parameters, one backward pass a column."""
    params = oracle.trainable(model)
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch's fused attention has no second derivative
        value = loss(oracle.run(model, inputs), targets)
    grads = torch.autograd.grad(value, params, create_graph=True, allow_unused=True)
    flat = torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(grads, params, strict=True)])
    return torch.stack([oracle.gradient(element, params) for element in flat]).detach()


def ggn(model: nn.Module, loss: Loss, inputs: Any, targets: Any) -> Tensor:
    """``J.T H J`` with the whole batch's Jacobian and the batch loss's Hessian by the whole batch's output."""
    params = oracle.trainable(model)
    output = oracle.run(model, inputs)
    J = torch.stack([oracle.gradient(element, params) for element in output.flatten()]).detach()
    free = output.detach()
    H = torch.func.hessian(lambda out: loss(out.reshape(free.shape), targets))(free.flatten())
    return J.T @ H @ J


def outer_products(model: nn.Module, by_sample: Loss, inputs: Any, targets: Any) -> Tensor:
    """The sum of outer products of per-sample gradients."""
    rows = oracle.loss_rows(model, by_sample, inputs, targets)
    return rows.T @ rows
