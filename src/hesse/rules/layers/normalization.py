"""Normalization layers: the row of the scale is the normalized input times the cotangent, summed over shared positions.

References: Ba, Kiros, Hinton 2016 (layer), Wu, He 2018 (group), Ioffe, Szegedy 2015 (batch; with running statistics only).
"""

from __future__ import annotations

from torch import Tensor

from hesse.rules.forms import Dense, Form
from hesse.rules.layers.meeting import Meeting, layer_rules


@layer_rules.register("NativeLayerNormBackward0")
def layer_norm(meeting: Meeting) -> Form | None:
    """``layer_norm(input, shape, weight, bias)``."""
    if meeting.index == 1:
        z = (meeting.saved("input") - meeting.saved("result1")) * meeting.saved("result2")
        return Dense(meeting.sum_to_weight(meeting.g * z.to(meeting.g.dtype)))
    return Dense(meeting.sum_to_weight(meeting.g)) if meeting.index == 2 else None


@layer_rules.register("NativeGroupNormBackward0")
def group_norm(meeting: Meeting) -> Form | None:
    """``group_norm(input, weight, bias)``."""
    if meeting.where.axis != 0 or not meeting.where.is_plain:
        return None
    if meeting.index == 2:
        return Dense(_sum_positions(meeting.g))
    image, groups = meeting.saved("input"), meeting.saved("group")
    grouped = image.reshape(image.shape[0], groups, -1)
    z = (grouped - meeting.saved("result1").unsqueeze(-1)) * meeting.saved("result2").unsqueeze(-1)
    return _by_channel(meeting.g, z.reshape(image.shape)) if meeting.index == 1 else None


@layer_rules.register("NativeBatchNormBackward0")
def batch_norm(meeting: Meeting) -> Form | None:
    """``batch_norm(input, weight, bias)`` with running statistics."""
    if meeting.saved("training") or meeting.where.axis != 0 or not meeting.where.is_plain:
        return None
    if meeting.index == 2:
        return Dense(_sum_positions(meeting.g))
    image = meeting.saved("input")
    shape = (1, -1) + (1,) * (image.ndim - 2)
    scale = (meeting.saved("running_var") + meeting.saved("eps")).rsqrt()
    z = (image - meeting.saved("running_mean").reshape(shape)) * scale.reshape(shape)
    return _by_channel(meeting.g, z) if meeting.index == 1 else None


def _by_channel(g: Tensor, z: Tensor) -> Form:
    return Dense(_sum_positions(g * z))


def _sum_positions(product: Tensor) -> Tensor:
    return product.reshape(*product.shape[:2], -1).sum(2)
