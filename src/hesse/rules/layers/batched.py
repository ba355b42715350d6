"""Batched matrix products with one weight for each member of a batch of layers: `bmm`, `baddbmm`, `addbmm`, most of `einsum`.

Forward ``y[G] = beta * bias + alpha * (left[G] @ right[G])``; the row of ``right[G]`` is ``sum_t left[G, t] (outer) g[G, t]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.rules.forms import Contract, Dense, Form
from hesse.rules.layers.meeting import Meeting, SampleAxis, layer_rules


@layer_rules.register("BmmBackward0")
def bmm(meeting: Meeting) -> Form | None:
    """``bmm(left, right)``."""
    return _factor(meeting, meeting.where, meeting.g, meeting.index == 1, "self" if meeting.index == 1 else "mat2")


@layer_rules.register("BaddbmmBackward0")
def baddbmm(meeting: Meeting) -> Form | None:
    """``baddbmm(bias, left, right)``."""
    if meeting.index == 0:
        return Dense(meeting.sum_to_weight(meeting.g * meeting.saved("beta")))
    g = meeting.g * meeting.saved("alpha")
    return _factor(meeting, meeting.where, g, meeting.index == 2, "batch1" if meeting.index == 2 else "batch2")


@layer_rules.register("AddbmmBackward0")
def addbmm(meeting: Meeting) -> Form | None:
    """``addbmm(bias, left, right)``, which adds up over G."""
    if meeting.index == 0:
        return Dense(meeting.sum_to_weight(meeting.g * meeting.saved("beta")))
    where = SampleAxis(meeting.where.axis + 1, meeting.where.before, meeting.where.after)
    g = (meeting.g * meeting.saved("alpha")).expand(meeting.shape[0], *meeting.g.shape)
    return _factor(meeting, where, g, meeting.index == 2, "batch1" if meeting.index == 2 else "batch2")


def _factor(meeting: Meeting, where: SampleAxis, g: Tensor, is_right: bool, other: str) -> Form | None:
    """The form of one factor.

    Args:
        where: where the samples are in g.
        g: the cotangent of every product, ``[G, rows, columns]``.
        is_right: whether the weight is the right factor (samples are rows then), or the left one (they are columns).
        other: the name of the other factor.
    """
    if where.axis != (1 if is_right else 2):
        return None
    data = meeting.saved(other)
    if data.layout != torch.strided:
        return None
    z, g = where.rows(data), where.rows(g)
    return Contract(z, g) if is_right else Contract(g.mT, z.mT)
