"""Where a matrix may have entries."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from hesse.core.errors import DataError, StructureError
from hesse.core.memory import chunk_size, current_budget
from hesse.core.storage import load_tensors, save_tensors
from hesse.sparse.braille import braille
from hesse.sparse.compressed import (
    Indices,
    by_column,
    canonical,
    check_compressed,
    checked_shape,
    from_pairs,
    frozen,
    integers,
    ones,
    read_only,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_KIND = "sparsity pattern"
_SMALL = 2**20  # bytes that no budget is asked for
_ASKED = "A sparsity pattern is made of index arrays, a SciPy or torch matrix, or an array."
_REMEDY = "pass a matrix, or build it by Pattern.from_coordinates(rows, columns, shape)"


@dataclass(frozen=True, eq=False, repr=False)
class Pattern:
    """Where a matrix may have entries; everywhere else it is zero for certain. Immutable, in compressed rows.

    Args:
        shape: ``(rows, columns)``.
        indptr: ``[rows + 1]``, integers: row i owns ``indices[indptr[i]:indptr[i + 1]]``.
        indices: ``[nnz]``, integers: columns, ascending in each row, none twice.

    Both arrays are copied and kept as read-only int64.

    Raises:
        StructureError: arrays that are no compressed rows of this shape; what is wrong, and in which row.
    """

    shape: tuple[int, int]
    indptr: Indices
    indices: Indices

    def __post_init__(self) -> None:
        shape = checked_shape(self.shape)
        indptr, indices = integers(self.indptr, "indptr"), integers(self.indices, "indices")
        check_compressed(shape, indptr, indices)
        self._set(shape, frozen(indptr), frozen(indices))

    def _set(self, shape: tuple[int, int], indptr: Indices, indices: Indices) -> None:
        for name, value in (("shape", shape), ("indptr", indptr), ("indices", indices)):
            object.__setattr__(self, name, value)

    @staticmethod
    def trusted(shape: tuple[int, int], indptr: Indices, indices: Indices) -> Pattern:
        """A pattern from int64 arrays that are known to be right and that nobody else will write to: no check, no copy."""
        pattern = object.__new__(Pattern)
        pattern._set(shape, frozen(indptr, own=True), frozen(indices, own=True))
        return pattern

    @staticmethod
    def from_coordinates(rows: ArrayLike, columns: ArrayLike, shape: tuple[int, int]) -> Pattern:
        """A pattern from the places of its entries, in any order; places that occur twice count once.

        Args:
            rows: ``[nnz]``, integers.
            columns: ``[nnz]``, integers.
            shape: of the matrix.

        Returns:
            The pattern; its arrays are its own.

        Raises:
            StructureError: a place outside of the matrix, arrays of two lengths, or of another dtype than integers.

        Cost: no gradients; about 10 ns an entry where rows ascend and columns in each row, 0.2 microseconds otherwise.
        """
        shape, rows, columns = checked_shape(shape), integers(rows, "rows"), integers(columns, "columns")
        if len(rows) != len(columns):
            raise StructureError(_ASKED, f"{len(rows)} rows and {len(columns)} columns", "pass one of each for every entry")
        for name, found, size in (("row", rows, shape[0]), ("column", columns, shape[1])):
            if len(found) and (found.min() < 0 or found.max() >= size):
                bad = int(found.min() if found.min() < 0 else found.max())
                raise StructureError(_ASKED, f"{name} {bad} of a matrix of shape {shape}", f"count from 0 to {size - 1}")
        return Pattern.trusted(shape, *from_pairs(rows, columns, shape))

    @staticmethod
    def of(matrix: Any) -> Pattern:
        """The pattern of a matrix: what it stores if it is sparse, else what is not zero.

        Args:
            matrix: a `Pattern` or what has one, a SciPy sparse matrix, a torch tensor of any layout with two axes, or an array.

        Raises:
            StructureError: anything else.
        """
        if isinstance(matrix, Pattern):
            return matrix
        if isinstance(getattr(matrix, "pattern", None), Pattern):
            return matrix.pattern
        if isinstance(matrix, Tensor) and matrix.ndim == 2:
            return _of_tensor(matrix)
        if scipy.sparse.issparse(matrix) and matrix.ndim == 2:
            compressed: Any = scipy.sparse.csr_array(matrix)  # shares the arrays of what is one already
            return Pattern.trusted(checked_shape(compressed.shape), *canonical(compressed))
        try:
            array = np.asarray(matrix)
        except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, sparse tensors with other axes
            found = f"a {type(matrix).__name__} that NumPy makes no array of ({error})"
            raise StructureError(_ASKED, found, _REMEDY) from error
        if array.ndim != 2 or array.dtype.kind not in "biufc":
            found = f"a {type(matrix).__name__} with {array.ndim} axes of dtype {array.dtype}"
            raise StructureError(_ASKED, found, _REMEDY)
        rows, columns = array.nonzero()
        return Pattern.from_coordinates(rows, columns, (array.shape[0], array.shape[1]))

    @property
    def nnz(self) -> int:
        """How many entries there may be."""
        return len(self.indices)

    @property
    def density(self) -> float:
        """The share of entries that may be there, from 0 to 1."""
        return self.nnz / max(1, self.shape[0] * self.shape[1])

    @cached_property
    def rows(self) -> Indices:
        """``[nnz]``: the row of each entry, beside its column in `indices`."""
        return frozen(np.repeat(np.arange(self.shape[0]), np.diff(self.indptr)), own=True)

    @property
    def coordinates(self) -> Tensor:
        """``[2, nnz]``, int64: rows and columns, as `torch.sparse` takes them; a new tensor each time."""
        return torch.from_numpy(np.stack([self.rows, self.indices]))

    @cached_property
    def T(self) -> Pattern:
        """Of the transpose."""
        csc: Any = self.ones.tocsc()
        other = Pattern.trusted((self.shape[1], self.shape[0]), csc.indptr.astype(np.int64), csc.indices.astype(np.int64))
        other.__dict__.update(T=self, _ones=read_only(csc.T))
        return other

    @cached_property
    def by_column(self) -> Indices:
        """``[nnz]``: the places of entries in the order of columns; those of mirror images if the pattern is symmetric."""
        return frozen(by_column(self.ones), own=True)

    @property
    def ones(self) -> Any:
        """A SciPy matrix of ones (int8), for SciPy's loops; its arrays are read-only, and `to_scipy` has others."""
        known = self._ones
        return scipy.sparse.csr_array((known.data, known.indices, known.indptr), shape=self.shape, copy=False)

    @cached_property
    def _ones(self) -> Any:
        return read_only(ones(self.shape, self.indptr, self.indices))

    @cached_property
    def is_symmetric(self) -> bool:
        """Whether the pattern is its own transpose."""
        return self.shape[0] == self.shape[1] and self == self.T

    def covers(self, other: Any) -> bool:
        """Whether every entry of another pattern (or what has one, see `of`) of the same shape is one of this."""
        other = Pattern.of(other)
        return self.shape == other.shape and not (other.ones > self.ones).nnz

    def missing(self, other: Any) -> Indices:
        """``[k, 2]``: the places of another pattern (or of what has one, see `of`) of the same shape that are not in this one.

        Raises:
            StructureError: patterns of two shapes, or what is none.
        """
        other = self._alike(other)
        coo = (other.ones > self.ones).tocoo()
        return np.stack([coo.row, coo.col], -1).astype(np.int64)

    def __or__(self, other: Any) -> Pattern:
        """Entries of either one."""
        return Pattern.trusted(self.shape, *canonical(self.ones + self._alike(other).ones))

    def __and__(self, other: Any) -> Pattern:
        """Entries of both."""
        return Pattern.trusted(self.shape, *canonical(self.ones.multiply(self._alike(other).ones).tocsr()))

    def _alike(self, other: Any) -> Pattern:
        """A pattern of this one's shape."""
        other = Pattern.of(other)
        if self.shape != other.shape:
            raise StructureError("Patterns of one shape are compared and joined.", f"{self.shape} and {other.shape}",
                                 "pass equal shapes")  # fmt: skip
        return other

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pattern):
            return NotImplemented
        same = self.shape == other.shape and np.array_equal(self.indptr, other.indptr)
        return same and np.array_equal(self.indices, other.indices)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.shape, self.indptr.tobytes(), self.indices.tobytes()))

    def __copy__(self) -> Pattern:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Pattern:
        return self

    def __getstate__(self) -> tuple[tuple[int, int], Indices, Indices]:
        return self.shape, self.indptr, self.indices

    def __setstate__(self, state: tuple[tuple[int, int], Indices, Indices]) -> None:
        self._set(state[0], *(frozen(array, own=True) for array in state[1:]))

    def __repr__(self) -> str:
        rows, columns = self.shape
        head = f"Pattern({rows} x {columns}, {self.nnz} entr{'y' if self.nnz == 1 else 'ies'}, {100 * self.density:.3g} %)"
        return f"{head}\n{braille(self.rows, self.indices, self.shape)}" if self.nnz else head

    def to_scipy(self) -> scipy.sparse.csr_array:
        """A SciPy matrix of ones."""
        return scipy.sparse.csr_array(self.ones, dtype=np.float64, copy=True)

    def to_dense(self) -> Tensor:
        """A bool tensor.

        Raises:
            MemoryBudgetError: one that is larger than the budget.
        """
        size = self.shape[0] * self.shape[1]
        if size > _SMALL:
            chunk_size(1, 0, size, current_budget(None), "a dense pattern")
        dense = np.zeros(self.shape, bool)
        dense[self.rows, self.indices] = True
        return torch.from_numpy(dense)

    def plot(self, ax: Axes | None = None) -> Axes:
        """A spy plot.

        Args:
            ax: where to draw; a new figure without.

        Returns:
            The axes drawn on; nothing is shown.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from hesse.sparse.plot import spy

        return spy(self, ax)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a safetensors file.

        Raises:
            MissingExtraError: safetensors is not installed.
        """
        tensors = {"indptr": torch.tensor(self.indptr), "indices": torch.tensor(self.indices)}
        save_tensors(path, tensors, _KIND, {"shape": list(self.shape)})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Pattern:
        """Read what `save` has written.

        Raises:
            DataError: no such pattern. MissingExtraError: safetensors is not installed.
        """
        tensors, header = load_tensors(path, _KIND)
        return pattern_of(tensors, header)


def pattern_of(tensors: dict[str, Tensor], header: Any) -> Pattern:
    """The pattern in a file.

    Raises:
        DataError: its arrays are no pattern.
    """
    try:
        return Pattern(tuple(header["shape"]), tensors["indptr"].numpy(), tensors["indices"].numpy())
    except (StructureError, KeyError, TypeError) as error:
        raise DataError("A file of a sparsity pattern holds one.", str(error), "save it again") from error


def _of_tensor(matrix: Tensor) -> Pattern:
    stored, shape = matrix.detach(), (matrix.shape[0], matrix.shape[1])
    if stored.is_meta:
        raise StructureError(_ASKED, "a tensor on the meta device, which has no values", _REMEDY)
    if stored.layout is torch.strided:
        rows, columns = (stored != 0).cpu().numpy().nonzero()
        return Pattern.from_coordinates(rows, columns, shape)
    coo = stored.to_sparse_coo().coalesce()
    rows, columns = coo.indices().cpu().numpy()
    return Pattern.from_coordinates(rows, columns, shape)
