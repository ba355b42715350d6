"""Matrix products: `F.linear`, `x @ W`, `W @ x`, `x @ w` with a vector, `addmm`, `addmv`.

Forward ``y = beta * bias + alpha * (left @ right)``; the row of the right factor is ``sum_t left[t] (outer) g[t]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.rules.forms import Contract, Dense, Form
from hesse.rules.layers.meeting import Meeting, layer_rules


@layer_rules.register("AddmmBackward0")
def addmm(meeting: Meeting) -> Form | None:
    """``addmm(bias, left, right)``."""
    if meeting.index == 0:
        return Dense(meeting.sum_to_weight(_scaled(meeting.g, meeting.saved("beta"))))
    return _factor(meeting, meeting.index == 2, "mat1" if meeting.index == 2 else "mat2", meeting.saved("alpha"))


@layer_rules.register("MmBackward0")
def mm(meeting: Meeting) -> Form | None:
    """``mm(left, right)``."""
    return _factor(meeting, meeting.index == 1, "self" if meeting.index == 1 else "mat2", 1)


@layer_rules.register("AddmvBackward0")
def addmv(meeting: Meeting) -> Form | None:
    """``addmv(bias, matrix, vector)``."""
    if meeting.index == 0:
        return Dense(meeting.sum_to_weight(_scaled(meeting.g, meeting.saved("beta"))))
    return _vector(meeting, "mat", meeting.saved("alpha")) if meeting.index == 2 else None


@layer_rules.register("MvBackward0")
def mv(meeting: Meeting) -> Form | None:
    """``mv(matrix, vector)``."""
    return _vector(meeting, "self", 1) if meeting.index == 1 else None


def _vector(meeting: Meeting, other: str, scale: float) -> Form | None:
    data = meeting.saved(other)
    if data.layout != torch.strided:
        return None
    g = meeting.where.rows(meeting.g).unsqueeze(2)
    return Contract(_one_group(_scaled(g, scale)), _one_group(meeting.where.rows(data)))


def _factor(meeting: Meeting, is_right: bool, other: str, scale: float) -> Form | None:
    if meeting.where.axis != (0 if is_right else 1):
        return None
    data = meeting.saved(other)
    if data.layout != torch.strided:
        return None
    z, g = meeting.where.rows(data), meeting.where.rows(meeting.g)
    g = _scaled(g, scale)
    if is_right:
        return Contract(_one_group(z), _one_group(g))
    return Contract(_one_group(g.mT), _one_group(z.mT))


def _scaled(g: Tensor, scale: float) -> Tensor:
    return g if scale == 1 else g * scale


def _one_group(rows: Tensor) -> Tensor:
    return rows.unsqueeze(1)
