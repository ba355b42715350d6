"""A small classifier on small images, and oracles for it in plain loops."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def classifier(dtype: torch.dtype = torch.float32) -> nn.Module:
    """187 parameters: images ``[N, 1, 6, 5]`` to scores of 3 classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3))
    return model.to(dtype).eval()


def images(n: int = 14, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Random images and labels, every class at least twice."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 6, 5, generator=generator).to(dtype), torch.arange(n) % 3


def sample_gradients(model: nn.Module, loss, x: Tensor, y: Tensor) -> list[list[Tensor]]:
    """The gradient of every sample's loss, by plain backward passes, one sample at a time."""
    params = list(model.parameters())
    return [list(torch.autograd.grad(loss(model(x[i : i + 1]), y[i : i + 1]), params)) for i in range(len(x))]


def flat(parts: list[Tensor]) -> Tensor:
    """All parts as one vector."""
    return torch.cat([p.reshape(-1) for p in parts])


def dense_hessian(model: nn.Module, loss, x: Tensor, y: Tensor) -> Tensor:
    """The Hessian of the batch loss, row by row, by double backward."""
    params = list(model.parameters())
    gradient = flat(list(torch.autograd.grad(loss(model(x), y), params, create_graph=True)))
    return torch.stack([flat(list(torch.autograd.grad(g, params, retain_graph=True))) for g in gradient])


def wide_classifier(loss: nn.Module | None = None) -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]:
    """725 parameters in float64, more than are treated exactly: ``[16, 30]`` to 5 classes."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 5)).double().eval()
        x = torch.randn(16, 30, dtype=torch.float64)
    return model, loss or nn.CrossEntropyLoss(), (x, torch.arange(16) % 5)


def dense_ggn(model: nn.Module, x: Tensor) -> Tensor:
    """The GGN of the mean cross entropy, from the Jacobian of each sample and the softmax's covariance."""
    params = list(model.parameters())
    total = torch.zeros(())
    for i in range(len(x)):
        output = model(x[i : i + 1])[0]
        J = torch.stack([flat(list(torch.autograd.grad(o, params, retain_graph=True))) for o in output])
        p = output.softmax(0).detach()
        total = total + J.T @ (torch.diag(p) - torch.outer(p, p)) @ J / len(x)
    return total
