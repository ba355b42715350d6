"""Index arrays in compressed rows: checked where users give them, made and compared at the speed of SciPy's loops in C."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from hesse.core.errors import StructureError

Indices = NDArray[np.int64]
Marks = NDArray[np.bool_]
_ASKED = "A sparsity pattern is made of index arrays, a SciPy or torch matrix, or an array."
_REMEDY = "build it by Pattern.from_coordinates(rows, columns, shape), which sorts"
_SMALL = np.iinfo(np.int32).max


def checked_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Two sizes as Python integers.

    Raises:
        StructureError: anything else.
    """
    sizes: tuple[Any, ...] = tuple(shape) if np.iterable(shape) else (shape,)
    right = len(sizes) == 2 and all(isinstance(n, (int, np.integer)) and n >= 0 for n in sizes)
    if not right:
        raise StructureError(_ASKED, f"the shape {shape!r}", "pass (rows, columns), two integers from 0 on")
    return int(sizes[0]), int(sizes[1])


def integers(values: ArrayLike, name: str, asked: str = _ASKED) -> Indices:
    """A flat int64 array; one without elements may have any dtype.

    Args:
        values: of an integer dtype.
        name: what they are, for the error.
        asked: what they are for, likewise.

    Raises:
        StructureError: not an array; floats, booleans or objects, which NumPy would round or convert in silence.
    """
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors on other devices, and sparse ones
        found = f"{name} that NumPy makes no array of ({error})"
        raise StructureError(asked, found, "pass a flat array of integers") from error
    if array.dtype == object:
        raise StructureError(asked, f"{name} of type {type(values).__name__}", "pass a flat array of integers")
    if array.size and array.dtype.kind not in "iu":
        raise StructureError(asked, f"{name} of dtype {array.dtype}", "pass integers")
    return array.astype(np.int64, copy=False).ravel()


def frozen(array: NDArray[Any], *, own: bool = False) -> Any:
    """A read-only array: a copy, unless it is one already or the caller's `own` to give away."""
    if not array.flags.writeable and array.base is None:
        return array
    array = array if own else array.copy()
    array.flags.writeable = False
    return array


def check_compressed(shape: tuple[int, int], indptr: Indices, indices: Indices) -> None:
    """Refuse arrays that are no compressed rows with ascending columns.

    Raises:
        StructureError: what is wrong, and in which row.
    """
    if len(indptr) != shape[0] + 1:
        raise StructureError(_ASKED, f"{len(indptr)} ends of rows for {shape[0]} rows", "pass rows + 1 numbers as indptr")
    lengths = np.diff(indptr)
    if indptr[0] != 0 or indptr[-1] != len(indices) or (len(lengths) and lengths.min() < 0):
        found = f"indptr from {indptr[0]} to {indptr[-1]} for {len(indices)} indices"
        if len(lengths) and lengths.min() < 0:
            found = f"a row {int(lengths.argmin())} of length {int(lengths.min())}"
        raise StructureError(_ASKED, found, "let indptr ascend from 0 to the number of indices")
    if len(indices) and (indices.min() < 0 or indices.max() >= shape[1]):
        bad = int(indices.min() if indices.min() < 0 else indices.max())
        raise StructureError(_ASKED, f"column {bad} of a matrix of shape {shape}", f"count from 0 to {shape[1] - 1}")
    wrong = np.flatnonzero(~_ascends(indptr, indices))
    if len(wrong):
        place = int(wrong[0])
        row = int(np.searchsorted(indptr, place, side="right")) - 1
        found = f"columns {indices[place]} and {indices[place + 1]}, in this order, in row {row}"
        raise StructureError(_ASKED, found, _REMEDY)


def _ascends(indptr: NDArray[Any], indices: NDArray[Any]) -> Marks:
    """``[nnz - 1]``: whether each index is below the next one, or the last one of its row."""
    below = indices[1:] > indices[:-1]
    ends = indptr[1:-1]
    below[ends[(ends > 0) & (ends < len(indices))] - 1] = True
    return below


def ones(shape: tuple[int, int], indptr: NDArray[Any], indices: NDArray[Any]) -> Any:
    """A SciPy matrix of ones (int8) with 32-bit indices where these suffice; its index arrays may be shared."""
    small = max(*shape, len(indices)) < _SMALL
    kind = np.int32 if small else np.int64
    data = np.ones(len(indices), np.int8)
    return scipy.sparse.csr_array(
        (data, indices.astype(kind, copy=False), indptr.astype(kind, copy=False)), shape=shape, copy=False
    )


def read_only(matrix: Any) -> Any:
    """A SciPy matrix whose arrays nobody can write to."""
    for array in (matrix.data, matrix.indices, matrix.indptr):
        array.flags.writeable = False
    return matrix


def canonical(matrix: Any) -> tuple[Indices, Indices]:
    """Row ends and columns of what a SciPy matrix in compressed rows stores, ascending and none twice; copies."""
    indptr, indices = matrix.indptr, matrix.indices
    if not _ascends(indptr, indices).all():
        matrix = ones(matrix.shape, indptr.copy(), indices.copy())
        matrix.sum_duplicates()
        indptr, indices = matrix.indptr, matrix.indices[: matrix.indptr[-1]]
    return indptr.astype(np.int64), indices.astype(np.int64)


def from_pairs(rows: Indices, columns: Indices, shape: tuple[int, int]) -> tuple[Indices, Indices]:
    """Compressed rows from places inside of the matrix, in any order, twice or not; a pass where they are sorted already.

    Source: the counting sort of `scipy.sparse` (``coo_tocsr``), which forms no products of sizes that could overflow.
    """
    step = rows[1:] - rows[:-1]
    if ((step > 0) | ((step == 0) & (columns[1:] > columns[:-1]))).all():
        indptr = np.zeros(shape[0] + 1, np.int64)
        np.cumsum(np.bincount(rows, minlength=shape[0]), out=indptr[1:])
        return indptr, columns.copy()
    coo = scipy.sparse.coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=shape)
    return canonical(coo.tocsr())


def by_column(matrix: Any) -> Indices:
    """``[nnz]``: the places of entries in the order of compressed columns.

    For a symmetric pattern, the place of each entry's mirror image.
    """
    numbers = np.arange(matrix.nnz, dtype=matrix.indices.dtype)
    numbered = scipy.sparse.csr_array((numbers, matrix.indices, matrix.indptr), shape=matrix.shape, copy=False)
    csc: Any = numbered.tocsc()
    return csc.data.astype(np.int64)
