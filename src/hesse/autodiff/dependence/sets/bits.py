"""A good part of all inputs an element: a bit for each."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from hesse.autodiff.dependence.sets.base import Sets, is_full, require_room

_AT_ONCE = 1 << 22  # bits that are unpacked at a time


class Bits(Sets):
    """Sets as bits.

    Args:
        words: ``[elements, ceil(inputs / 64)]``, uint64; input j is bit ``j % 64`` of word ``j // 64``.
        inputs: how many inputs there are.
    """

    rank = 2

    def __init__(self, words: NDArray[np.uint64], inputs: int) -> None:
        self.words, self.count, self.inputs = words, len(words), inputs

    @staticmethod
    def of(matrix: Any) -> Bits:
        """From a SciPy matrix in compressed rows."""
        count, inputs = matrix.shape
        require_room(count * inputs / 8, count)
        words = _words(count, inputs)
        step = max(1, _AT_ONCE // max(1, inputs))
        for start in range(0, count, step):
            block = np.zeros((min(step, count - start), words.shape[1] * 64), bool)
            ends = matrix.indptr[start : start + len(block) + 1]
            rows = np.repeat(np.arange(len(block)), np.diff(ends))
            block[rows, matrix.indices[ends[0] : ends[-1]]] = True
            words[start : start + len(block)] = np.packbits(block, axis=1, bitorder="little").view(np.uint64)
        return Bits(words, inputs)

    def take(self, numbers: Tensor) -> Sets:
        chosen = numbers.numpy()
        if self.count and not is_full(int(np.append(self.counts, 0)[chosen].sum()), len(chosen), self.inputs):
            return self.entries().take(numbers)
        require_room(self.words.itemsize * self.words.shape[1] * len(chosen), len(chosen))
        if not self.count:
            return self.empty(len(chosen))
        words = self.words[chosen]
        words[chosen < 0] = 0
        return Bits(words, self.inputs)

    def union(self, other: Sets) -> Sets:
        return Bits(self.words | _as_bits(other).words, self.inputs)

    def grouped(self, groups: Tensor, size: int) -> Sets:
        return self._united(torch.arange(self.count)[groups >= 0], groups[groups >= 0], size)

    def paired(self, members: Tensor, groups: Tensor, size: int) -> Sets:
        return self._united(members, groups, size)

    def _united(self, members: Tensor, groups: Tensor, size: int) -> Sets:
        require_room(self.words.itemsize * self.words.shape[1] * size, size)
        words = _words(size, self.inputs)
        order = torch.argsort(groups, stable=True)
        members, groups = members[order], groups[order]
        names, counts = torch.unique_consecutive(groups, return_counts=True)
        ends, step = counts.cumsum(0), max(1, _AT_ONCE // (64 * max(1, words.shape[1])))
        start = done = 0
        while start < len(names):  # as many groups at a time as fit
            stop = max(start + 1, int(torch.searchsorted(ends, done + step, right=True)))
            own = members[done : int(ends[stop - 1])].numpy()
            first = (ends[start:stop] - counts[start:stop] - done).numpy()
            words[names[start:stop].numpy()] = np.bitwise_or.reduceat(self.words[own], first, axis=0)
            start, done = stop, int(ends[stop - 1])
        return Bits(words, self.inputs)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """``[elements]``: how many inputs each of them has."""
        step = max(1, _AT_ONCE // max(1, self.inputs))
        parts = [np.unpackbits(self.words[start : start + step].view(np.uint8), axis=1).sum(1, np.int64)
                 for start in range(0, self.count, step)]  # fmt: skip
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def entries(self) -> Sets:
        """As compressed rows."""
        from hesse.autodiff.dependence.sets.entries import Entries  # which become bits in their turn

        return Entries(self.compressed())

    def then(self, other: Sets) -> Sets:
        added = int(other.counts.sum()) if isinstance(other, Bits) else other.compressed().nnz
        if not is_full(int(self.counts.sum()) + added, self.count + other.count, self.inputs):
            return self.entries().then(other)
        return Bits(np.concatenate([self.words, _as_bits(other).words]), self.inputs)

    def empty(self, count: int) -> Sets:
        return Bits(_words(count, self.inputs), self.inputs)

    def compressed(self) -> Any:
        step = max(1, _AT_ONCE // max(1, self.inputs))
        columns, counts, total = [], np.zeros(self.count + 1, np.int64), 0
        for start in range(0, self.count, step):
            block = np.unpackbits(self.words[start : start + step].view(np.uint8), axis=1, bitorder="little")
            rows, found = block.nonzero()
            columns.append(found.astype(np.int32))
            total += len(found)
            require_room(total * 5, self.count)
            counts[start + 1 : start + len(block) + 1] = np.bincount(rows, minlength=len(block))
        flat = np.concatenate(columns) if columns else np.zeros(0, np.int32)
        parts = (np.ones(len(flat), bool), flat, np.cumsum(counts))
        matrix = scipy.sparse.csr_array(parts, shape=(self.count, self.inputs))
        matrix.has_canonical_format = True
        return matrix


def _words(count: int, inputs: int) -> NDArray[np.uint64]:
    return np.zeros((count, -(-inputs // 64)), np.uint64)


def _as_bits(sets: Sets) -> Bits:
    return sets if isinstance(sets, Bits) else Bits.of(sets.compressed())
