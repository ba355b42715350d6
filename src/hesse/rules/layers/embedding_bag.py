"""Bags of embeddings: sums, means or maxima over tokens, each bag with its own number of them.

Bags are padded to the longest one with cotangents of zero. See `embedding` for what `scale_grad_by_freq` means by sample. On a
CPU PyTorch divides by the frequency of another token where a smaller one is repeated (EmbeddingBag.cpp,
``counts[indices_data[i]]``, where i counts distinct tokens); rows are what it gives, so that this is followed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from hesse.rules.forms import Form, Lookup
from hesse.rules.layers.embedding import frequency, padding_token
from hesse.rules.layers.meeting import Meeting, SampleAxis, layer_rules


class _Mode(IntEnum):
    """PyTorch's numbers for the ways to reduce a bag."""

    SUM = 0
    MEAN = 1
    MAX = 2


@dataclass(frozen=True, eq=False)
class _Bags:
    """Tokens ``[T]`` of B bags: the bag of each token, its place in there, and the length of the longest bag (at least 1)."""

    token: Tensor
    bag: Tensor
    place: Tensor
    count: int
    longest: int

    def padded(self, values: Tensor) -> Tensor:
        """Values ``[T]`` as ``[B, longest]``, zero where a bag has no token."""
        table = values.new_zeros(self.count, self.longest)
        table[self.bag, self.place] = values
        return table


@layer_rules.register("EmbeddingBagBackward0")
def embedding_bag(meeting: Meeting) -> Form | None:
    """``embedding_bag(weight, indices, offsets, per_sample_weights=...)``."""
    if meeting.index != 0 or meeting.where.axis != 0:
        return None
    bags = _bags(meeting.saved("indices").long(), meeting.saved("offsets").long(), meeting.g.shape[0])
    if bags is None:
        return None
    token = bags.padded(bags.token)
    kept = bags.token != padding_token(meeting)
    if meeting.saved("mode") == _Mode.MAX:
        g = _of_maxima(meeting.g, token, bags.padded(kept), meeting.saved("result3"))
    else:
        g = meeting.g.unsqueeze(1) * bags.padded(_weights(meeting, bags, kept)).unsqueeze(2)
    return Lookup(meeting.where.rows(token).flatten(1), meeting.where.rows(g).flatten(1, 2), meeting.shape[0])


def _bags(token: Tensor, offsets: Tensor, count: int) -> _Bags | None:
    """The bags that offsets make of tokens, which have to lie in one bag each."""
    ends = torch.cat([offsets[1:count], offsets.new_tensor([len(token)])])
    sizes = ends - offsets[:count]
    ends_early = len(offsets) > count and int(offsets[count]) != len(token)
    if int(offsets[0]) != 0 or ends_early or int(sizes.min()) < 0:
        return None
    bag = torch.arange(count, device=token.device).repeat_interleave(sizes)
    place = torch.arange(len(token), device=token.device) - offsets[bag]
    return _Bags(token, bag, place, count, max(1, int(sizes.max())))


def _weights(meeting: Meeting, bags: _Bags, kept: Tensor) -> Tensor:
    """``[T]``: the factor of each token in its bag's sum or mean."""
    weights = kept.to(meeting.g.dtype)
    given = meeting.saved("per_sample_weights")
    if given is not None:
        weights = weights * given
    if meeting.saved("mode") == _Mode.MEAN:
        sizes = kept.new_zeros(bags.count, dtype=torch.long).index_add_(0, bags.bag, kept.long())
        weights = weights / sizes.clamp(min=1)[bags.bag]
    if meeting.saved("scale_grad_by_freq"):
        sample = _sample_of_bag(meeting.where, bags.bag.new_empty(bags.count))[bags.bag]
        count = _frequency_on_cpu if weights.device.type == "cpu" else frequency
        weights = weights / count(sample, bags.token, meeting.shape[0])
    return weights


def _frequency_on_cpu(sample: Tensor, token: Tensor, table: int) -> Tensor:
    """``[T]``: what PyTorch divides by: for the i-th distinct token of a sample the frequency of its i-th one, in order."""
    key = sample * table + token
    distinct, place, count = key.unique(return_inverse=True, return_counts=True)
    ordered, lowest = key.sort().values, distinct // table * table
    rank = torch.arange(len(distinct), device=key.device) - torch.searchsorted(distinct, lowest)
    taken = ordered[torch.searchsorted(ordered, lowest) + rank]
    return count[torch.searchsorted(distinct, taken)][place]


def _sample_of_bag(where: SampleAxis, like: Tensor) -> Tensor:
    """``[B]``: the sample that each bag belongs to."""
    rows = where.rows(like)
    return where.unrows(torch.arange(len(rows), device=like.device).unsqueeze(1).expand_as(rows))


def _of_maxima(g: Tensor, token: Tensor, kept: Tensor, largest: Tensor) -> Tensor:
    """``[B, longest, d]``: the cotangent of each column at the first place of the column's largest token.

    Args:
        g: ``[B, d]``.
        token, kept: ``[B, longest]``: tokens, and whether they take part.
        largest: ``[B, d]``: the token with the largest value of each column.
    """
    found = (token.unsqueeze(2) == largest.unsqueeze(1)) & kept.unsqueeze(2)
    first = found.to(torch.uint8).argmax(1, keepdim=True)
    result = g.new_zeros(*token.shape, g.shape[1])
    return result.scatter_(1, first, (g * found.any(1)).unsqueeze(1))
