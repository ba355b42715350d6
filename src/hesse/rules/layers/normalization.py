"""Normalization layers: the row of the scale is the normalized input times the cotangent, summed over shared positions.

References: Ba, Kiros, Hinton 2016 (layer), Zhang, Sennrich 2019 (root mean square), Wu, He 2018 (group), Ioffe, Szegedy
2015 (batch; with running statistics only). 16-bit inputs are normalized in float32, as PyTorch does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.rules.forms import Dense, Form
from hesse.rules.layers.meeting import Meeting, layer_rules


@layer_rules.register("NativeLayerNormBackward0")
def layer_norm(meeting: Meeting) -> Form | None:
    """``layer_norm(input, shape, weight, bias)``."""
    if meeting.index == 1:
        image, dims = _wide(meeting.saved("input")), tuple(range(-len(meeting.shape), 0))
        mean, deviation = _statistics(meeting, image, dims, meeting.saved("result1"), meeting.saved("result2"))
        z = (image - mean) * deviation
        return _scale(meeting, meeting.sum_to_weight(meeting.g * z))
    return Dense(meeting.sum_to_weight(meeting.g)) if meeting.index == 2 else None


@layer_rules.register("FusedRmsNormBackward0")
def rms_norm(meeting: Meeting) -> Form | None:
    """``rms_norm(input, shape, weight)`` where it is one op (CUDA); elsewhere it is a product."""
    if meeting.index != 1:
        return None
    image, dims = _wide(meeting.saved("input")), tuple(range(-len(meeting.shape), 0))
    z = image * (meeting.saved("result1") if not meeting.attached else _inverse_root(image, dims, meeting.saved("result1")))
    return _scale(meeting, meeting.sum_to_weight(meeting.g * z))


@layer_rules.register("NativeGroupNormBackward0")
def group_norm(meeting: Meeting) -> Form | None:
    """``group_norm(input, weight, bias)``."""
    if meeting.where.axis != 0:
        return None
    if meeting.index == 2:
        return Dense(_sum_positions(meeting, meeting.g))
    image, groups = _wide(meeting.saved("input")), meeting.saved("group")
    grouped = image.reshape(image.shape[0], groups, -1)
    found = (meeting.saved(name).unsqueeze(-1) for name in ("result1", "result2"))
    mean, deviation = _statistics(meeting, grouped, (-1,), *found)
    z = (grouped - mean) * deviation
    return _scale(meeting, _sum_positions(meeting, meeting.g * z.reshape(image.shape))) if meeting.index == 1 else None


@layer_rules.register("NativeBatchNormBackward0")
def batch_norm(meeting: Meeting) -> Form | None:
    """``batch_norm(input, weight, bias)`` with running statistics."""
    if meeting.saved("training") or meeting.where.axis != 0:
        return None
    if meeting.index == 2:
        return Dense(_sum_positions(meeting, meeting.g))
    image = _wide(meeting.saved("input"))
    shape = (1, -1) + (1,) * (image.ndim - 2)
    scale = (meeting.saved("running_var") + meeting.saved("eps")).rsqrt()
    z = (image - meeting.saved("running_mean").reshape(shape)) * scale.reshape(shape)
    return _scale(meeting, _sum_positions(meeting, meeting.g * z)) if meeting.index == 1 else None


def _statistics(meeting: Meeting, x: Tensor, dims: tuple[int, ...], mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation as saved; for differentiable forms as functions of x, since PyTorch saves numbers."""
    if not meeting.attached:
        return mean, deviation
    mean = x.mean(dims, keepdim=True)
    return mean, _inverse_root(x - mean, dims, deviation)


def _inverse_root(x: Tensor, dims: tuple[int, ...], saved: Tensor) -> Tensor:
    """``1 / sqrt(mean(x^2) + eps)`` as a function of x, with the eps that is behind the saved value."""
    square = x.square().mean(dims, keepdim=True)
    return (square + (saved.pow(-2) - square).detach()).rsqrt()


def _wide(image: Tensor) -> Tensor:
    return image.float() if image.dtype in (torch.float16, torch.bfloat16) else image


def _scale(meeting: Meeting, rows: Tensor) -> Form:
    """Rows of the scale in its own dtype, which is wider than the data's under autocast."""
    return Dense(rows.to(meeting.saved("weight").dtype))


def _sum_positions(meeting: Meeting, product: Tensor) -> Tensor:
    """``[n, C]``: a product ``[n * f, C, ...]`` added up over the f parts of a sample and over positions."""
    rows = meeting.where.rows(product)
    return rows.reshape(*rows.shape[:3], -1).sum((1, 3))
