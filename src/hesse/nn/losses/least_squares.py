"""Sums of squares."""

from __future__ import annotations

from torch import Tensor

from hesse.nn.losses.reduction import Reduction, reduced, require_same_shape


def least_squares(prediction: Tensor, target: Tensor, *, reduction: Reduction = "sum") -> Tensor:
    """Σ (prediction - target)², as `torch.nn.functional.mse_loss` but a sum unless said.

    Args:
        prediction: any shape.
        target: the same shape.
        reduction: over all elements, or "none".

    Returns:
        0-d, or the shape of the input for reduction="none".

    Raises:
        StructureError: other shapes (`mse_loss` broadcasts them), an unknown reduction.
    """
    require_same_shape(prediction, target, "least_squares")
    return reduced((prediction - target).square(), reduction)
