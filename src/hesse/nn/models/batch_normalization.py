"""Batch normalization as a pure function: running statistics go in and come out."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.core.errors import DataError

EPS = 1e-5
MOMENTUM = 0.1
Statistics = dict[str, Tensor]  # running_mean and running_var, both [features]


def initial_statistics(like: Tensor) -> Statistics:
    """Mean 0 and variance 1, in the shape, dtype and device of a tensor."""
    detached = like.detach()
    return {"running_mean": torch.zeros_like(detached), "running_var": torch.ones_like(detached)}


def batch_norm(x: Tensor, params: dict[str, Tensor], statistics: Statistics, *, training: bool) -> tuple[Tensor, Statistics]:
    """`torch.nn.BatchNorm*` with its defaults (eps 1e-5, momentum 0.1), and the new running statistics.

    Args:
        x: ``[batch, features, ...]``.
        params: ``weight`` and ``bias``, ``[features]``.
        statistics: ``running_mean`` and ``running_var``, ``[features]``; they are not written to.
        training: normalize by the batch's mean and variance, and move the running ones (by the unbiased variance).

    Returns:
        the normalized input, and the statistics: new ones in training, else the given ones.

    Raises:
        DataError: training with one value a feature, whose variance is 0.
    """
    mean, variance = statistics["running_mean"], statistics["running_var"]
    weight, bias = params["weight"], params["bias"]
    if not training:
        return torch.nn.functional.batch_norm(x, mean, variance, weight, bias, False, MOMENTUM, EPS), statistics
    if x.numel() <= x.shape[1]:
        asked = "Batch normalization in training needs more than one value of each feature."
        raise DataError(asked, f"an input of shape {tuple(x.shape)}", "pass a larger batch, or training=False")
    y = torch.nn.functional.batch_norm(x, None, None, weight, bias, True, MOMENTUM, EPS)
    seen_variance, seen_mean = torch.var_mean(x.detach(), dim=[0, *range(2, x.ndim)])
    moved = {
        "running_mean": torch.lerp(mean, seen_mean, MOMENTUM),
        "running_var": torch.lerp(variance, seen_variance, MOMENTUM),
    }
    return y, moved
