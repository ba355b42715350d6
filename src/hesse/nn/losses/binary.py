"""Losses of yes or no."""

from __future__ import annotations

from torch import Tensor

from hesse.nn.losses.reduction import Reduction, reduced, require_same_shape


def log_bce(probabilities: Tensor, target: Tensor, *, p: float = 0.0, reduction: Reduction = "sum") -> Tensor:
    """-Σ t log(q + p) + (1 - t) log(1 - q - p) for predicted probabilities q.

    Args:
        probabilities: q, in (0, 1), any shape.
        target: t, in [0, 1], the same shape.
        p: added to q, which keeps the first logarithm finite at q = 0; the argument of the second is kept at p or above (from
            q = 1 - 2 p on, where the formula ends in NaN).
        reduction: over all elements, or "none".

    Returns:
        0-d, or the shape of the input for reduction="none". For p = 0 it is `torch.nn.functional.binary_cross_entropy`, which
        cuts its logarithms off at -100.

    Raises:
        StructureError: other shapes, an unknown reduction.
    """
    require_same_shape(probabilities, target, "log_bce")
    q = probabilities + p
    not_q = (1 - q).clamp(min=p) if p else 1 - q
    return reduced(-(target * q.log() + (1 - target) * not_q.log()), reduction)


def binary_cross_entropy(logits: Tensor, target: Tensor, *, p: float = 1e-6, reduction: Reduction = "sum") -> Tensor:
    """The loss above of probabilities kept within [p, 1 - p]: q = sigmoid(logits) (1 - 2 p) + p.

    Args:
        logits: any shape.
        target: in [0, 1], the same shape.
        p: smallest probability. For p = 0 use `torch.nn.functional.binary_cross_entropy_with_logits`, which does not overflow.
        reduction: over all elements, or "none".

    Returns:
        0-d, or the shape of the input for reduction="none". It is bounded by -log(p), and so is its gradient: far on the wrong
        side of a clipped prediction the gradient vanishes, where that of the logistic loss is 1.

    Raises:
        StructureError: other shapes, an unknown reduction.
    """
    require_same_shape(logits, target, "binary_cross_entropy")
    q, not_q = logits.sigmoid() * (1 - 2 * p) + p, (-logits).sigmoid() * (1 - 2 * p) + p
    return reduced(-(target * q.log() + (1 - target) * not_q.log()), reduction)
