"""Embedding tables: rows of a weight looked up by tokens.

With `scale_grad_by_freq` PyTorch divides what a token's row receives by how often the token is in the batch. Here the row of a
sample is what PyTorch gives for that sample alone, so that counts are those of the token within the sample. That is a scaling
rather than a derivative: these rows do not add up to the batch's gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.core.equal import first_equal
from hesse.rules.forms import Form, Lookup
from hesse.rules.layers.meeting import Meeting, layer_rules


@layer_rules.register("EmbeddingBackward0")
def embedding(meeting: Meeting) -> Form | None:
    """``embedding(weight, indices)``; a padding token receives nothing, and `scale_grad_by_freq` counts within a sample."""
    index = meeting.where.rows(meeting.saved("indices")).flatten(1).long()
    g = meeting.where.rows(meeting.g).flatten(1, -2)
    padding = padding_token(meeting)
    if padding >= 0:
        g = g.masked_fill((index == padding).unsqueeze(-1), 0)
    if meeting.saved("scale_grad_by_freq"):
        sample = torch.arange(index.shape[0], device=index.device).unsqueeze(1)
        g = g / frequency(sample, index, meeting.shape[0]).unsqueeze(-1)
    return Lookup(index, g, meeting.shape[0])


def padding_token(meeting: Meeting) -> int:
    """The token that receives nothing; -1: there is none (PyTorch saves that as an unsigned number)."""
    padding = meeting.saved("padding_idx")
    return padding if padding < meeting.shape[0] else -1


def frequency(sample: Tensor, index: Tensor, table: int) -> Tensor:
    """How often each token is in its sample.

    Args:
        sample: the sample that each token belongs to, broadcast against `index`.
        index: tokens below `table`.
        table: number of tokens that there are.
    """
    key = sample * table + index
    first = first_equal(key.flatten())
    return torch.zeros_like(first).index_add(0, first, torch.ones_like(first))[first].reshape(key.shape)
