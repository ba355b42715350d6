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
