"""What counting characters gives: perplexities that a character model has to beat."""

from __future__ import annotations

import torch
from torch import Tensor


def contexts(codes: Tensor, order: int, characters: int) -> tuple[Tensor, Tensor]:
    """Every character with a number for the `order` characters before it: (contexts ``[N]``, characters ``[N]``)."""
    windows = codes.unfold(0, order + 1, 1)
    powers = characters ** torch.arange(order - 1, -1, -1)
    return (windows[:, :order] * powers).sum(1), windows[:, order]


def perplexity(training: Tensor, test: Tensor, order: int, characters: int, smoothing: float = 0.1) -> float:
    """The perplexity on `test` of frequencies counted in `training` after the same `order` characters.

    `smoothing` is added to every count (Lidstone's rule), so that what never occurred keeps a probability.
    """
    before, after = contexts(training, order, characters)
    counts = torch.bincount(before * characters + after, minlength=characters ** (order + 1)).reshape(-1, characters)
    before, after = contexts(test, order, characters)
    found = counts[before, after] + smoothing
    log_likelihood = (found / (counts.sum(1)[before] + smoothing * characters)).log().mean()
    return torch.exp(-log_likelihood).item()
