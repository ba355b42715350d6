"""A weight repeated for every sample, as instance normalization does with its scale."""

from __future__ import annotations

from hesse.rules.forms import Dense, Form
from hesse.rules.layers.meeting import Meeting, layer_rules


@layer_rules.register("RepeatBackward0")
def repeat(meeting: Meeting) -> Form | None:
    """``weight.repeat(*repeats)``, samples being repetitions along one axis."""
    rows, where = meeting.where.rows(meeting.g), meeting.where
    sizes = (1,) * (meeting.g.ndim - len(meeting.shape)) + tuple(meeting.shape)
    if where.after % sizes[where.axis]:
        return None
    split = [part for length, size in zip(rows.shape[1:], sizes, strict=True) for part in (length // size, size)]
    summed = rows.reshape(rows.shape[0], *split).sum(list(range(1, 1 + len(split), 2)))
    return Dense(summed.reshape(rows.shape[0], *meeting.shape))
