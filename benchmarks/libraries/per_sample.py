"""From per-sample gradients to the rest, for libraries that offer the gradients alone. Plain torch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def norms(rows: Mapping[str, Tensor]) -> Tensor:
    """[N] of norms over all parameters, from name -> [N, *shape]."""
    each = [torch.linalg.vector_norm(block.flatten(1), dim=1) for block in rows.values()]
    return torch.linalg.vector_norm(torch.stack(each), dim=0)


def squares(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """name -> [*shape], summed over samples; overwrites `rows`, which is faster than a second array."""
    return {name: block.square_().sum(0) for name, block in rows.items()}


def gram(rows: Mapping[str, Tensor]) -> Tensor:
    """[N, N] of inner products."""
    products = [block.flatten(1) @ block.flatten(1).T for block in rows.values()]
    return torch.stack(products).sum(0)
