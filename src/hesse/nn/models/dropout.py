"""Dropout with explicit randomness."""

from __future__ import annotations

import torch
from torch import Tensor


def dropout(x: Tensor, p: float, *, training: bool, generator: torch.Generator | None = None, channels: bool = False) -> Tensor:
    """Inverted dropout: elements (or whole channels) are zero with probability p, the others are scaled by 1 / (1 - p).

    Args:
        x: ``[batch, ...]``; ``[batch, channels, ...]`` for channels=True.
        p: probability of being dropped.
        training: without it, x comes back as it is.
        generator: source of the random numbers; None takes torch's global one, as `torch.nn.functional.dropout` does.
        channels: drop whole channels (Tompson et al., "Efficient object localization", CVPR 2015).

    Returns:
        in the shape of x.
    """
    if not training or p == 0:
        return x
    if p == 1:
        return x.new_zeros(()) * x
    shape = (*x.shape[:2], *(1 for _ in x.shape[2:])) if channels else tuple(x.shape)
    if generator is None:
        return x * torch.nn.functional.dropout(x.new_ones(shape), p)
    kept = torch.rand(shape, device=generator.device, generator=generator) >= p
    return x * kept.to(device=x.device, dtype=x.dtype).div_(1 - p)
