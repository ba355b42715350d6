"""A weight's elements picked by indices that are data: `W[idx]`, `index_select`, `gather`, `take`."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.rules.forms import Form, Lookup
from hesse.rules.layers.meeting import Meeting, layer_rules


@layer_rules.register("IndexBackward0")
def index(meeting: Meeting) -> Form | None:
    """``weight[indices]`` with one tensor of integers, for the first axis."""
    first, *others = meeting.saved("indices")
    return None if any(other is not None for other in others) else _lookup(meeting, first)


@layer_rules.register("IndexSelectBackward0")
def index_select(meeting: Meeting) -> Form | None:
    """``weight.index_select(0, index)``; along another axis samples are not in front."""
    return _lookup(meeting, meeting.saved("index"))


@layer_rules.register("GatherBackward0", "TakeBackward0")
def gather(meeting: Meeting) -> Form | None:
    """``weight.gather(0, index)`` and ``weight.take(index)`` of a weight with one axis."""
    return _lookup(meeting, meeting.saved("index")) if len(meeting.shape) == 1 else None


def _lookup(meeting: Meeting, places: Tensor | None) -> Form | None:
    """Rows of the weight's first axis; negative indices count from its end."""
    if meeting.index != 0 or places is None or places.dtype in (torch.bool, torch.uint8):
        return None
    if meeting.where.axis >= places.ndim:
        return None
    table = meeting.shape[0]
    found = meeting.where.rows(places.detach()).flatten(1).long()
    g = meeting.where.rows(meeting.g)
    return Lookup(found % table, g.reshape(*found.shape, -1), table)
