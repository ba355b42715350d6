"""Random words by place: what a number of a projection is depends on the seed and its place in the matrix, on nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.core.mixing import GOLDEN, counters, mix, mix_number, signed


def start_of(seed: int, stream: int) -> int:
    """Where the words of one kind of projection with this seed start; `stream` tells the kinds apart."""
    return mix_number(mix_number(seed) + stream)


def column_words(start: int, places: slice | Tensor, device: torch.device) -> Tensor:
    """One word for each column, int64 ``[c]``.

    Args:
        start: of `start_of`.
        places: which columns: a slice with both ends, or int64 ``[c]``.
        device: where the words go.
    """
    if isinstance(places, slice):
        words = counters(places.start, places.stop - places.start, device)
    else:
        words = (places.to(device) + 1).mul_(signed(GOLDEN))
    return mix(words.add_(start))


def entry_words(columns: Tensor, count: int) -> Tensor:
    """`count` words for each column, ``[c, count]``; the first ones are the same whatever the count."""
    return mix(columns[:, None] + counters(0, count, columns.device))


def distinct(start: int, count: int, among: int, device: torch.device) -> Tensor:
    """`count` different numbers below `among`, in ascending order: any such set is as likely as another."""
    order = torch.argsort(mix(counters(0, among, device).add_(start)))
    return order[:count].sort().values
