"""How much memory it takes to follow every element, from a run that follows a few inputs drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from hesse.autodiff.dependence.sets.base import Sets
from hesse.autodiff.dependence.sets.entries import Entries
from hesse.core import random

SPACE = 48  # bytes for an element of x that are needed at least, to follow a few of them or all
_FEWEST = 256  # inputs that are followed
_SHARE = 64  # one input out of so many is followed
_ENTRY, _ELEMENT = 6, 8  # bytes at most that sets hold for an entry, and for an element
_SPARE = 1.25  # for what is drawn at random
_MADE = 5  # times the largest sets, while they are made


@dataclass
class Tally:
    """Counts sets as they are noted.

    Attributes:
        entries, elements: of all of them.
        largest: entries of the largest ones.
    """

    entries: int = 0
    elements: int = 0
    largest: int = 0
    _seen: list[Sets] = field(default_factory=list)
    _names: set[int] = field(default_factory=set)

    def add(self, sets: Sets | None) -> None:
        """Count some, unless they were counted before."""
        if sets is None or id(sets) in self._names:
            return
        self._names.add(id(sets))
        self._seen.append(sets)
        found = sets.matrix.nnz if isinstance(sets, Entries) else 0
        self.entries, self.elements = self.entries + found, self.elements + sets.count
        self.largest = max(self.largest, found)

    def bytes(self, scale: float) -> float:
        """What all sets take, where each of the entries stands for so many."""
        return _SPARE * scale * _ENTRY * (self.entries + _MADE * self.largest) + _ELEMENT * self.elements


@dataclass
class Sample:
    """Labels for some inputs.

    Attributes:
        scale: how many inputs each of them stands for.
    """

    scale: float = 1.0

    def label(self, tensors: Sequence[Tensor]) -> list[Sets]:
        """As each element an input, for those that were drawn."""
        total = sum(t.numel() for t in tensors)
        count = min(total, max(_FEWEST, total // _SHARE))
        self.scale = total / max(count, 1)
        drawn = torch.randperm(total, generator=random.make_generator())[:count].sort().values.numpy()
        found, start = [], 0
        for t in tensors:
            own = drawn[(drawn >= start) & (drawn < start + t.numel())]
            found.append(Entries(_identity(own - start, own, t.numel(), total)))
            start += t.numel()
        return found


def _identity(rows: Any, columns: Any, height: int, width: int) -> Any:
    ends = np.zeros(height + 1, np.int32)
    ends[rows + 1] = 1
    np.cumsum(ends, out=ends)
    return scipy.sparse.csr_array((np.ones(len(rows), bool), columns.astype(np.int32), ends), shape=(height, width))


def estimated(run: Callable[[Callable[[Sequence[Tensor]], list[Sets]], Tally], Any]) -> tuple[float, float, int, int]:
    """Bytes of the sets, and entries, rows and columns of the pattern.

    Args:
        run: follows the function with these labels, counts the sets, and returns those of its outputs.

    Cost: a run of the function, and work in proportion to a small part of the entries.
    """
    sample, tally = Sample(), Tally()
    sets = run(sample.label, tally)
    found = sets.matrix.nnz if isinstance(sets, Entries) else sets.compressed().nnz
    return tally.bytes(sample.scale), _SPARE * sample.scale * found, sets.count, sets.inputs
