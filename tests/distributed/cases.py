"""A small classification case whose batches are uneven, with class weights and ignored targets, cut by rank."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.25], dtype=torch.float64)
SIZES = (5, 1, 7, 3, 2)  # samples of each batch
CUTS = {1: [5], 2: [4, 1], 3: [2, 0, 3], 4: [1, 0, 3, 1]}  # batches of each rank

Batch = tuple[Tensor, Tensor]


def model(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).to(dtype)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, weight=WEIGHTS.to(output.dtype), ignore_index=2)


KNOWN = nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=2)


def vector() -> dict[str, Tensor]:
    """A vector of the space of the model's parameters."""
    return {name: torch.arange(1.0, p.numel() + 1, dtype=p.dtype).view_as(p) for name, p in model().named_parameters()}


def batches(dtype: torch.dtype = torch.float64) -> list[Batch]:
    source = torch.Generator().manual_seed(11)
    made = []
    for size in SIZES:
        x = torch.randn(size, 3, generator=source, dtype=torch.float64).to(dtype)
        made.append((x, torch.randint(0, 4, (size,), generator=source)))
    return made


def part(rank: int, ranks: int, made: list[Batch] | None = None) -> list[Batch]:
    """The batches of one rank."""
    made = batches() if made is None else made
    start = sum(CUTS[ranks][:rank])
    return made[start : start + CUTS[ranks][rank]]


def whole(made: list[Batch] | None = None) -> Batch:
    """All samples as one batch."""
    made = batches() if made is None else made
    return torch.cat([x for x, _ in made]), torch.cat([y for _, y in made])


def full_hessian(net: nn.Module, criterion: nn.Module | object, batch: Batch) -> Tensor:
    """The Hessian of the loss of one batch by plain double backward, ``[dim, dim]``."""
    params = list(net.parameters())
    gradient = torch.autograd.grad(criterion(net(batch[0]), batch[1]), params, create_graph=True)  # type: ignore[operator]
    flat = torch.cat([g.reshape(-1) for g in gradient])
    rows = [torch.autograd.grad(entry, params, retain_graph=True, materialize_grads=True) for entry in flat]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])


def full_ggn(net: nn.Module, batch: Batch) -> Tensor:
    """``Jᵀ H J`` by plain loops: the Jacobian of every output, the closed form of the softmax's Hessian, ``[dim, dim]``."""
    params = list(net.parameters())
    outputs = net(batch[0])
    total = torch.zeros(sum(p.numel() for p in params), sum(p.numel() for p in params), dtype=outputs.dtype)
    mass = 0.0
    for row, target in zip(outputs, batch[1].tolist(), strict=True):
        weight = 0.0 if target == 2 else float(WEIGHTS[target])
        mass += weight
        rows = [torch.autograd.grad(entry, params, retain_graph=True) for entry in row]
        J = torch.stack([torch.cat([g.reshape(-1) for g in one]) for one in rows])
        p = row.detach().softmax(0)
        total += weight * J.T @ (torch.diag(p) - torch.outer(p, p)) @ J
    return total / mass
