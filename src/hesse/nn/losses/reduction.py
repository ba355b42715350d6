"""How a loss's elements become its value."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from hesse.core.errors import StructureError

Reduction = Literal["sum", "mean", "none"]


def reduced(elements: Tensor, reduction: Reduction) -> Tensor:
    """Their sum, their mean, or the elements.

    Raises:
        StructureError: an unknown reduction.
    """
    if reduction not in ("sum", "mean", "none"):
        raise StructureError(
            "reduction says how a loss's elements are put together.", repr(reduction), "'sum', 'mean' or 'none'"
        )
    return elements.sum() if reduction == "sum" else elements.mean() if reduction == "mean" else elements


def require_same_shape(prediction: Tensor, target: Tensor, loss: str) -> None:
    """Refuse targets that would be broadcast, which is seldom meant and silently wrong.

    Raises:
        StructureError: two shapes.
    """
    if prediction.shape != target.shape:
        found = f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        raise StructureError(f"{loss} takes predictions and targets of one shape.", found, "reshape or expand the target")
