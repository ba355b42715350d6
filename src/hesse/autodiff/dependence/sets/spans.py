"""The first and the last input of each element, and no others: enough to see whether it depends on one alone."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.autodiff.dependence.sets.base import Sets

_NONE = torch.iinfo(torch.int32).max


class Spans(Sets):
    """Intervals that hold the sets.

    Args:
        low, high: ``[count]``, int32: the first and the last input of each element; where there is none, `low` is the largest
            number and `high` is -1.
        inputs: how many inputs there are.
    """

    rank = 0

    def __init__(self, low: Tensor, high: Tensor, inputs: int) -> None:
        self.low, self.high, self.count, self.inputs = low, high, len(low), inputs

    @staticmethod
    def of(numbers: Tensor, inputs: int) -> Spans:
        """Each element on one input."""
        numbers = numbers.to(torch.int32)
        return Spans(numbers, numbers, inputs)

    @property
    def mixed(self) -> bool:
        """Whether some element may depend on several inputs."""
        return self.low is not self.high and bool((self.low < self.high).any())

    def take(self, numbers: Tensor) -> Sets:
        if not self.count:
            return self.empty(len(numbers))
        none, safe = numbers < 0, numbers.clamp(min=0)
        low, high = self.low.index_select(0, safe), self.high.index_select(0, safe)
        if bool(none.any()):
            return Spans(low.masked_fill_(none, _NONE), high.masked_fill_(none, -1), self.inputs)
        return Spans(low, low if self.low is self.high else high, self.inputs)

    def union(self, other: Sets) -> Sets:
        assert isinstance(other, Spans)
        return Spans(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high), self.inputs)

    def grouped(self, groups: Tensor, size: int) -> Sets:
        kept = groups >= 0
        low, high, groups = (self.low, self.high, groups) if bool(kept.all()) else (
            self.low[kept], self.high[kept], groups[kept])  # fmt: skip
        none = self.empty(size)
        assert isinstance(none, Spans)
        return Spans(none.low.scatter_reduce_(0, groups, low, "amin"), none.high.scatter_reduce_(0, groups, high, "amax"),
                     self.inputs)  # fmt: skip

    def then(self, other: Sets) -> Sets:
        assert isinstance(other, Spans)
        return Spans(torch.cat([self.low, other.low]), torch.cat([self.high, other.high]), self.inputs)

    def empty(self, count: int) -> Sets:
        low, high = (torch.full((count,), n, dtype=torch.int32) for n in (_NONE, -1))
        return Spans(low, high, self.inputs)
