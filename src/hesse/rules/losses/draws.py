"""What random roots are made of: labels and signs, drawn from uniform numbers that the caller gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Uniform = Callable[[Sequence[int]], Tensor]
"""``uniform(shape)``: independent numbers in [0, 1), ``shape[0]`` the number of samples. float64 resolves rare classes best."""


def draw_labels(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """One class a position by the inverse of the cumulated distribution, never a class of probability 0.

    Sums are taken in float64, so that 50,000 classes in float32 are drawn with their own probabilities. The last class that is
    possible takes what rounding leaves, and sums at impossible classes are left out: those of accelerators need not be even.

    Args:
        probabilities: ``[n, C, ...]``, not negative; need not add up to 1.
        uniform: ``[n, ...]``, numbers in [0, 1).

    Returns:
        ``[n, 1, ...]``, int64.
    """
    cumulated = probabilities.cumsum(1, dtype=torch.float64).masked_fill_(probabilities == 0, 0)
    total = cumulated.amax(1, keepdim=True)
    below = torch.nextafter(total, torch.zeros_like(total))
    threshold = torch.minimum(uniform.to(total).unsqueeze(1) * total, below)
    return (cumulated > threshold).view(torch.uint8).argmax(1, keepdim=True)


def signs(uniform: Uniform, like: Tensor) -> Tensor:
    """Independent signs, 1 or -1: they have variance 0 on the diagonal, which drawn labels have not."""
    return torch.where(uniform(like.shape) < 0.5, -1.0, 1.0).to(like)
