"""Predictions forced into a range."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from hesse.core.errors import LeafError, StructureError
from hesse.nn.losses.reduction import Reduction, reduced


def interval(
    prediction: Tensor,
    low: Tensor | float | None,
    high: Tensor | float | None,
    *,
    kind: Literal["hinge", "quadratic"] = "hinge",
    reduction: Reduction = "sum",
) -> Tensor:
    """Zero in [low, high], and growing outside: the distance d to the interval, or d².

    A count of the predictions outside is piecewise constant, so its gradient is zero everywhere and nothing is learned; this
    is the loss to use instead (`explain_zero_gradient` finds such losses).

    Args:
        prediction: any shape, floating.
        low: lower bound, a number or a tensor that broadcasts to the prediction; None for none.
        high: upper bound, likewise.
        kind: "hinge": d, whose derivative is -1 below, 0 inside and at the bounds, and 1 above. "quadratic": d², which has a
            continuous derivative 2 (p - bound).
        reduction: over all elements, or "none".

    Returns:
        0-d, or the shape of the prediction for reduction="none".

    Raises:
        LeafError: integer predictions. StructureError: low above high (numbers), no bound, bounds larger than the prediction,
            an unknown kind or reduction.
    """
    if not prediction.is_floating_point():
        asked = "interval takes real floating predictions, which can be differentiated."
        raise LeafError(asked, f"{prediction.dtype}", "pass the scores, not the classes or rounded values")
    if kind not in ("hinge", "quadratic"):
        raise StructureError("kind says how the loss grows outside the interval.", repr(kind), "'hinge' or 'quadratic'")
    if low is None and high is None:
        raise StructureError("interval takes a lower bound, an upper bound, or both.", "neither", "pass low, high or both")
    if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low > high:
        raise StructureError("interval takes low <= high.", f"low={low}, high={high}", "exchange them")
    below = None if low is None else (low - prediction).relu()
    above = None if high is None else (prediction - high).relu()
    distance = above if below is None else below if above is None else below + above
    assert distance is not None
    if distance.shape != prediction.shape:
        found = f"{tuple(prediction.shape)} becomes {tuple(distance.shape)}"
        raise StructureError("The bounds broadcast to the prediction's shape.", found, "expand the prediction")
    return reduced(distance if kind == "hinge" else distance.square(), reduction)
