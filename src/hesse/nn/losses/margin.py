"""The margin between positive and negative examples."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.nn.losses.reduction import Reduction, reduced, require_same_shape


def margin(scores: Tensor, target: Tensor, *, margin: float = 1.0, reduction: Reduction = "sum") -> Tensor:
    """Σ max(0, margin - (p - n)) over all pairs of a positive score p and a negative one n.

    Args:
        scores: any shape; pairs are formed over all elements together. (For pairs within each row: `torch.vmap`.)
        target: 1 for positive, 0 for negative, anything else for neither; the same shape.
        margin: by how much a positive score is to be above a negative one.
        reduction: "sum" or "mean" over the pairs (0 without a pair), or "none".

    Returns:
        0-d; for reduction="none" ``[elements, elements]``, rows positive and columns negative, zero where there is no pair.
        At the kink the derivative is 0, as PyTorch's `relu` has it.

    Raises:
        StructureError: other shapes, an unknown reduction.
    """
    require_same_shape(scores, target, "margin")
    s, t = scores.flatten(), target.flatten()
    pairs = (t == 1).unsqueeze(1) & (t == 0).unsqueeze(0)
    violations = torch.where(pairs, (margin - (s.unsqueeze(1) - s.unsqueeze(0))).relu(), 0.0)
    if reduction == "mean":
        return violations.sum() / pairs.sum().clamp(min=1)
    return reduced(violations, reduction)
