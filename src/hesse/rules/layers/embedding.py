"""Embedding tables, and bags of their rows."""

from __future__ import annotations

from hesse.core.errors import MixedSamplesError
from hesse.rules.forms import Form, Lookup
from hesse.rules.layers.meeting import Meeting, layer_rules


@layer_rules.register("EmbeddingBackward0")
def embedding(meeting: Meeting) -> Form | None:
    """``embedding(weight, indices)``.

    Raises:
        MixedSamplesError: `scale_grad_by_freq`, which divides by how often a token stands in the whole batch.
    """
    _refuse_counting(meeting)
    index = meeting.where.rows(meeting.saved("indices")).flatten(1)
    g = meeting.where.rows(meeting.g).flatten(1, -2)
    padding = meeting.saved("padding_idx")
    if padding >= 0:
        g = g.masked_fill((index == padding).unsqueeze(-1), 0)
    return Lookup(index, g, meeting.shape[0])


@layer_rules.register("EmbeddingBagBackward0")
def embedding_bag(meeting: Meeting) -> Form | None:
    """``embedding_bag(weight, indices)``: the exact masked path.

    Raises:
        MixedSamplesError: `scale_grad_by_freq`.
    """
    _refuse_counting(meeting)
    return None


def _refuse_counting(meeting: Meeting) -> None:
    if meeting.saved("scale_grad_by_freq"):
        raise MixedSamplesError(
            "Derivatives by sample need samples that do not influence each other.",
            f"{meeting.node.name()} with scale_grad_by_freq=True, which divides by how often a token is in the batch",
            "set scale_grad_by_freq=False",
        )
