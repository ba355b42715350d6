"""From per-sample gradients to the rest, for libraries that offer the gradients alone. Plain torch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

LARGE = 4096  # entries of one sample: from there on, sample by sample beats a second array of all (by up to nine times)


def norms(rows: Mapping[str, Tensor]) -> Tensor:
    """[N] of norms over all parameters, from name -> [N, *shape]."""
    each = [torch.linalg.vector_norm(block.flatten(1), dim=1) for block in rows.values()]
    return torch.linalg.vector_norm(torch.stack(each), dim=0)


def squares(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """name -> [*shape], summed over samples. Blocks may share memory (two biases of one layer), so none is overwritten."""
    return {name: _summed_squares(block) for name, block in rows.items()}


def _summed_squares(block: Tensor) -> Tensor:
    if block[0].numel() < LARGE:
        return block.square().sum(0)
    total = torch.zeros_like(block[0])
    for row in block:
        total.addcmul_(row, row)
    return total


def clipped_sum(rows: Mapping[str, Tensor], max_norm: float) -> dict[str, Tensor]:
    """name -> [*shape]: the sum over samples of gradients scaled down to at most `max_norm`."""
    factors = (max_norm / norms(rows)).clamp(max=1.0)
    return {name: torch.tensordot(factors, block, 1) for name, block in rows.items()}


def gram(rows: Mapping[str, Tensor]) -> Tensor:
    """[N, N] of inner products."""
    products = [block.flatten(1) @ block.flatten(1).T for block in rows.values()]
    return torch.stack(products).sum(0)
