"""Embedding tables."""

from __future__ import annotations

from hesse.rules.forms import Form, Lookup
from hesse.rules.layers.meeting import Meeting, layer_rules


@layer_rules.register("EmbeddingBackward0")
def embedding(meeting: Meeting) -> Form | None:
    """``embedding(weight, indices)``; `scale_grad_by_freq` counts tokens over the whole batch and is left to the exact path."""
    if meeting.saved("scale_grad_by_freq"):
        return None
    index = meeting.where.rows(meeting.saved("indices")).flatten(1)
    g = meeting.where.rows(meeting.g).flatten(1, -2)
    padding = meeting.saved("padding_idx")
    if padding >= 0:
        g = g.masked_fill((index == padding).unsqueeze(-1), 0)
    return Lookup(index, g, meeting.shape[0])
