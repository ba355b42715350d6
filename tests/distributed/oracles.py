"""What products and norms have to be: plain loops of torch.autograd over one process's copy of the model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


def gradients(model: nn.Module, loss: Loss, x: Tensor, t: Tensor) -> Tensor:
    """``[N, D]``: the gradient of every sample's own loss."""
    own = [p for p in model.parameters() if p.requires_grad]
    rows = [torch.autograd.grad(loss(model(x[n : n + 1]), t[n : n + 1]), own) for n in range(len(x))]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])


def hessian(model: nn.Module, loss: Loss, x: Tensor, t: Tensor) -> Tensor:
    """``[D, D]``: the Hessian of the batch's loss, a row at a time."""
    own = [p for p in model.parameters() if p.requires_grad]
    first = torch.autograd.grad(loss(model(x), t), own, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in first])
    rows = [torch.autograd.grad(entry, own, retain_graph=True, materialize_grads=True) for entry in flat]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])


def gauss_newton(model: nn.Module, loss: Loss, x: Tensor, t: Tensor) -> Tensor:
    """``[D, D]``: JᵀHJ with J of the batch's outputs and H the loss's Hessian by them."""
    own = [p for p in model.parameters() if p.requires_grad]
    output = model(x)
    rows = [torch.autograd.grad(entry, own, retain_graph=True, materialize_grads=True) for entry in output.reshape(-1)]
    J = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
    y = output.detach().requires_grad_()
    (first,) = torch.autograd.grad(loss(y, t), y, create_graph=True)
    H = torch.stack([torch.autograd.grad(entry, y, retain_graph=True)[0].reshape(-1) for entry in first.reshape(-1)])
    return J.T @ H @ J
