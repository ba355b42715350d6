"""Many inputs an element: the rows of a sparse boolean matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from hesse.autodiff.dependence.sets.base import ENTRY, Sets, is_full, require_room
from hesse.autodiff.dependence.sets.bits import Bits


class Entries(Sets):
    """Sets in compressed rows.

    Args:
        matrix: ``[elements, inputs]``, a SciPy matrix of bools in compressed rows.
    """

    rank = 1

    def __init__(self, matrix: Any) -> None:
        self.matrix = matrix
        self.count, self.inputs = matrix.shape

    @staticmethod
    def of(matrix: Any) -> Sets:
        """In whichever of rows and bits is smaller."""
        return Bits.of(matrix) if is_full(matrix.nnz, *matrix.shape) else Entries(matrix)

    def take(self, numbers: Tensor) -> Sets:
        chosen, matrix = numbers.numpy(), self.matrix
        lengths = np.append(np.diff(matrix.indptr), 0)[chosen]
        total = int(lengths.sum())
        if is_full(total, len(chosen), self.inputs):
            return Bits.of(matrix).take(numbers)
        require_room(total * ENTRY, len(chosen))
        ends = np.zeros(len(chosen) + 1, matrix.indptr.dtype if total < 2**31 else np.int64)
        np.cumsum(lengths, out=ends[1:])
        starts = np.append(matrix.indptr[:-1], 0)[chosen]
        places = np.arange(total) + np.repeat(starts - ends[:-1], lengths)
        return Entries(_matrix(matrix.indices[places], ends, (len(chosen), self.inputs)))

    def union(self, other: Sets) -> Sets:
        return Entries.of(self.matrix + _as_matrix(other))

    def grouped(self, groups: Tensor, size: int) -> Sets:
        of_each = groups.numpy()
        members = np.flatnonzero(of_each >= 0)
        return self._product(of_each[members], members, size)

    def paired(self, members: Tensor, groups: Tensor, size: int) -> Sets:
        return self._product(groups.numpy(), members.numpy(), size)

    def _product(self, groups: Any, members: Any, size: int) -> Sets:
        total = int(np.diff(self.matrix.indptr)[members].sum())
        if is_full(total / 4, size, self.inputs) and is_full(total, self.count, self.inputs):
            return Bits.of(self.matrix).paired(_tensor(members), _tensor(groups), size)
        require_room(total * ENTRY, size)
        chosen = scipy.sparse.csr_array((np.ones(len(groups), bool), (groups, members)), shape=(size, self.count))
        return Entries.of(chosen @ self.matrix)

    def then(self, other: Sets) -> Sets:
        if isinstance(other, Bits) and is_full(
            self.matrix.nnz + int(other.counts.sum()), self.count + other.count, self.inputs
        ):
            return Bits.of(self.matrix).then(other)
        a, b = self.matrix, _as_matrix(other)
        ends = np.concatenate([a.indptr, b.indptr[1:].astype(np.int64) + a.nnz])
        return Entries(_matrix(np.concatenate([a.indices, b.indices]), ends, (a.shape[0] + b.shape[0], self.inputs)))

    def empty(self, count: int) -> Sets:
        return Entries(scipy.sparse.csr_array((count, self.inputs), dtype=bool))

    def compressed(self) -> Any:
        matrix = self.matrix
        if not matrix.has_canonical_format:
            matrix = matrix.copy()
            matrix.sum_duplicates()
        return matrix


def _matrix(columns: Any, ends: Any, shape: tuple[int, int]) -> Any:
    return scipy.sparse.csr_array((np.ones(len(columns), bool), columns, ends), shape=shape)


def _as_matrix(sets: Sets) -> Any:
    return sets.matrix if isinstance(sets, Entries) else sets.compressed()


def _tensor(numbers: Any) -> Tensor:
    return torch.from_numpy(np.asarray(numbers, np.int64))
