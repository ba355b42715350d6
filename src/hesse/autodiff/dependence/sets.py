"""Sets of input elements, one for each element of a tensor, as the rows of a sparse boolean matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from hesse.core.errors import MemoryBudgetError
from hesse.rules.sparsity.forms import Form, Grouped, Pairs, Same

Sets = Any  # scipy.sparse.csr_array of bool, [elements, inputs]; never changed once made
Numbers = NDArray[np.int64]
LARGEST = 400_000_000  # entries: 2 GB


def identity(count: int, inputs: int, start: int = 0) -> Sets:
    """Each element on one input, from `start` on."""
    columns, ends = np.arange(start, start + count), np.arange(count + 1)
    return scipy.sparse.csr_array((np.ones(count, bool), columns, ends), shape=(count, inputs))


def sparse_zeros(count: int, inputs: int) -> Sets:
    """No inputs at all."""
    return scipy.sparse.csr_array((count, inputs), dtype=bool)


def stacked(a: Sets, b: Sets) -> Sets:
    """The sets of one list of elements after those of another."""
    ends = np.concatenate([a.indptr, b.indptr[1:].astype(np.int64) + a.nnz])
    parts = (np.ones(a.nnz + b.nnz, bool), np.concatenate([a.indices, b.indices]), ends)
    return scipy.sparse.csr_array(parts, shape=(a.shape[0] + b.shape[0], a.shape[1]))


def union(a: Sets | None, b: Sets | None) -> Sets | None:
    """The inputs of either one."""
    if a is None or b is None or a is b:
        return b if a is None else a
    return a + b


def rows(sets: Sets, numbers: Numbers) -> Sets:
    """The sets of some elements, in an order, with repetitions; none for -1, and for numbers that nothing has.

    Raises:
        MemoryBudgetError: these would be too many entries.
    """
    if len(numbers) and numbers.max() >= sets.shape[0]:
        numbers = np.where(numbers < sets.shape[0], numbers, -1)
    lengths = np.append(np.diff(sets.indptr), 0)[numbers]
    total = int(lengths.sum())
    if total > LARGEST:
        raise MemoryBudgetError(
            "The pattern of a sparse derivative is found by sets of inputs.",
            f"{total} entries in the middle of the function, for {len(numbers)} elements",
            "use structure='dense': so full a matrix is no sparse one",
        )
    ends = np.zeros(len(numbers) + 1, sets.indptr.dtype if total < 2**31 else np.int64)
    np.cumsum(lengths, out=ends[1:])
    starts = np.append(sets.indptr[:-1], 0)[numbers]
    places = np.arange(total) + np.repeat(starts - ends[:-1], lengths)
    return scipy.sparse.csr_array((np.ones(total, bool), sets.indices[places], ends), shape=(len(numbers), sets.shape[1]))


def depending(sets: Sets, operand: Tensor, output: Tensor, form: Form) -> Sets:
    """The sets of a result's elements, as far as they come from one operand.

    Args:
        sets: of the operand's elements.
        operand, output: the tensors, for their shapes.
        form: how one depends on the other.
    """
    if isinstance(form, Same):
        if operand.shape == output.shape:
            return sets
        numbers = torch.arange(operand.numel()).view(operand.shape).expand(output.shape)
        return rows(sets, numbers.flatten().numpy())
    grouped = _grouped(sets, form.inputs.flatten().numpy())
    if isinstance(form, Grouped):
        return rows(grouped, form.outputs.flatten().numpy())
    return rows(_paired(grouped, form), form.rows.flatten().numpy())


def _grouped(sets: Sets, groups: Numbers) -> Sets:
    """The union over each group."""
    count = len(groups)
    if count == sets.shape[0] and np.array_equal(groups, np.arange(count)):
        return sets
    kept = groups >= 0
    size = int(groups.max(initial=-1)) + 1
    members = (np.ones(int(kept.sum()), bool), (groups[kept], np.flatnonzero(kept)))
    return scipy.sparse.csr_array(members, shape=(size, count)) @ sets


def _paired(sets: Sets, form: Pairs) -> Sets:
    outputs, groups = form.outputs.numpy(), form.groups.numpy()
    size = int(form.rows.max()) + 1 if form.rows.numel() else 0
    pairs = scipy.sparse.csr_array((np.ones(len(groups), bool), (outputs, groups)), shape=(size, sets.shape[0]))
    return pairs @ sets
