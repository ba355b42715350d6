"""Losses of one choice among classes."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.core.errors import LeafError
from hesse.nn.losses.reduction import Reduction, reduced, require_same_shape


def log_multinomial(log_probabilities: Tensor, target: Tensor, *, reduction: Reduction = "sum") -> Tensor:
    """-Σ target · log_probabilities over the classes.

    Args:
        log_probabilities: ``[..., classes]``, the result of a `log_softmax`.
        target: probabilities (or one-hot rows, or counts) of the same shape.
        reduction: "sum" or "mean" over the samples, or "none".

    Returns:
        0-d, or ``[...]`` for reduction="none". With class indices it is `torch.nn.functional.nll_loss`.

    Raises:
        StructureError: other shapes, an unknown reduction.
    """
    require_same_shape(log_probabilities, target, "log_multinomial")
    return reduced(-(log_probabilities * target).sum(-1), reduction)


def cross_entropy(logits: Tensor, target: Tensor, *, reduction: Reduction = "sum") -> Tensor:
    """-log softmax(logits) of the target, each sample normalized by itself.

    Args:
        logits: ``[batch, classes]``, ``[batch, classes, ...]`` or ``[classes]``.
        target: class indices (integers: the shape of the logits without the classes), or probabilities or one-hot rows of
            any dtype in the shape of the logits.
        reduction: "sum" or "mean" over the samples, or "none".

    Returns:
        0-d, or one number a sample for reduction="none": `torch.nn.functional.cross_entropy`, which see for class weights,
        ignored indices and label smoothing. The log-probabilities are ``logits.log_softmax(1)``.

    Raises:
        StructureError: an unknown reduction. LeafError: class indices that are no integers.
    """
    if target.shape == logits.shape:
        target = target.to(logits.dtype)
    elif target.is_floating_point() or target.is_complex():
        remedy = "convert indices with .long(), or pass one probability for each logit"
        raise LeafError("cross_entropy takes class indices, or probabilities in the shape of the logits.",
                        f"{target.dtype} {tuple(target.shape)} for logits {tuple(logits.shape)}", remedy)  # fmt: skip
    else:
        target = target.long()
    return reduced(torch.nn.functional.cross_entropy(logits, target, reduction="none"), reduction)
