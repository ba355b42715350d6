"""Where a matrix may have entries."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.core.storage import load_tensors, save_tensors
from hesse.sparse.braille import braille

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Indices = NDArray[np.int64]
_KIND = "sparsity pattern"
_ASKED = "A sparsity pattern is made of index arrays, a SciPy or torch matrix, or an array."


@dataclass(frozen=True, eq=False, repr=False)
class Pattern:
    """Where a matrix may have entries; everywhere else it is zero for certain. Immutable, in compressed rows.

    Args:
        shape: ``(rows, columns)``.
        indptr: ``[rows + 1]``, int64: row i owns ``indices[indptr[i]:indptr[i + 1]]``.
        indices: ``[nnz]``, int64: columns, ascending in each row, none twice.
    """

    shape: tuple[int, int]
    indptr: Indices
    indices: Indices

    @staticmethod
    def from_coordinates(rows: ArrayLike, columns: ArrayLike, shape: tuple[int, int]) -> Pattern:
        """A pattern from the places of its entries, in any order; places that occur twice count once.

        Args:
            rows: ``[nnz]``, integers.
            columns: ``[nnz]``, integers.
            shape: of the matrix.

        Raises:
            StructureError: a place outside of the matrix, or arrays of two lengths.
        """
        rows, columns = np.asarray(rows, np.int64).ravel(), np.asarray(columns, np.int64).ravel()
        if len(rows) != len(columns):
            raise StructureError(_ASKED, f"{len(rows)} rows and {len(columns)} columns", "pass one of each for every entry")
        for name, found, size in (("row", rows, shape[0]), ("column", columns, shape[1])):
            if len(found) and (found.min() < 0 or found.max() >= size):
                bad = int(found.min() if found.min() < 0 else found.max())
                raise StructureError(_ASKED, f"{name} {bad} of a matrix of shape {tuple(shape)}", f"count from 0 to {size - 1}")
        keys = np.unique(rows * shape[1] + columns) if len(rows) else rows
        rows, columns = np.divmod(keys, max(1, shape[1]))
        indptr = np.zeros(shape[0] + 1, np.int64)
        np.cumsum(np.bincount(rows, minlength=shape[0]), out=indptr[1:])
        return Pattern((int(shape[0]), int(shape[1])), indptr, columns)

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
            stored = matrix.detach()
            if stored.layout is torch.strided:
                stored = stored != 0
            coo = stored.to_sparse_coo().coalesce()
            rows, columns = coo.indices().cpu().numpy()
            return Pattern.from_coordinates(rows, columns, (matrix.shape[0], matrix.shape[1]))
        if scipy.sparse.issparse(matrix):
            coo: Any = scipy.sparse.coo_array(matrix)
            return Pattern.from_coordinates(coo.row, coo.col, coo.shape)
        array = np.asarray(matrix)
        if array.ndim != 2 or array.dtype == object:
            found = f"a {type(matrix).__name__} with {array.ndim} axes"
            raise StructureError(_ASKED, found, "pass a matrix, or build it by Pattern.from_coordinates(rows, columns, shape)")
        rows, columns = array.nonzero()
        return Pattern.from_coordinates(rows, columns, array.shape)

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
        return np.repeat(np.arange(self.shape[0]), np.diff(self.indptr))

    @cached_property
    def T(self) -> Pattern:
        """Of the transpose."""
        order = np.argsort(self.indices, kind="stable")
        indptr = np.zeros(self.shape[1] + 1, np.int64)
        np.cumsum(np.bincount(self.indices, minlength=self.shape[1]), out=indptr[1:])
        return Pattern((self.shape[1], self.shape[0]), indptr, self.rows[order])

    @property
    def is_symmetric(self) -> bool:
        """Whether the pattern is its own transpose."""
        return self == self.T

    def covers(self, other: Pattern) -> bool:
        """Whether every entry of another pattern of the same shape is one of this."""
        return self.shape == other.shape and not len(self.missing(other))

    def missing(self, other: Pattern) -> Indices:
        """``[k, 2]``: the places of another pattern of the same shape that this one does not have."""
        width = max(1, self.shape[1])
        keys = other.rows * width + other.indices
        lost = keys[~np.isin(keys, self.rows * width + self.indices)]
        return np.stack(np.divmod(lost, width), -1)

    def __or__(self, other: Pattern) -> Pattern:
        """Entries of either one."""
        if self.shape != other.shape:
            raise StructureError("A union is of patterns of one shape.", f"{self.shape} and {other.shape}", "pass equal shapes")
        rows, columns = np.concatenate([self.rows, other.rows]), np.concatenate([self.indices, other.indices])
        return Pattern.from_coordinates(rows, columns, self.shape)

    def __and__(self, other: Pattern) -> Pattern:
        """Entries of both."""
        if self.shape != other.shape:
            raise StructureError(
                "An overlap is of patterns of one shape.", f"{self.shape} and {other.shape}", "pass equal shapes"
            )
        width = max(1, self.shape[1])
        keys = np.intersect1d(self.rows * width + self.indices, other.rows * width + other.indices, assume_unique=True)
        return Pattern.from_coordinates(*np.divmod(keys, width), self.shape)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pattern):
            return NotImplemented
        same = self.shape == other.shape and np.array_equal(self.indptr, other.indptr)
        return same and np.array_equal(self.indices, other.indices)

    __hash__: Callable[[Any], int] | None = None  # pyright: ignore[reportIncompatibleMethodOverride]

    def __repr__(self) -> str:
        rows, columns = self.shape
        head = f"Pattern({rows} x {columns}, {self.nnz} entries, {100 * self.density:.3g} %)"
        return f"{head}\n{braille(self.rows, self.indices, self.shape)}" if self.nnz else head

    def to_scipy(self) -> scipy.sparse.csr_array:
        """A SciPy matrix of ones."""
        return scipy.sparse.csr_array((np.ones(self.nnz), self.indices, self.indptr), shape=self.shape)

    def to_dense(self) -> Tensor:
        """A bool tensor."""
        dense = torch.zeros(self.shape, dtype=torch.bool)
        dense[torch.from_numpy(self.rows), torch.from_numpy(self.indices)] = True
        return dense

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
        tensors = {"indptr": torch.from_numpy(self.indptr), "indices": torch.from_numpy(self.indices)}
        save_tensors(path, tensors, _KIND, {"shape": list(self.shape)})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Pattern:
        """Read what `save` has written.

        Raises:
            DataError: no such pattern. MissingExtraError: safetensors is not installed.
        """
        tensors, header = load_tensors(path, _KIND)
        rows, columns = header["shape"]
        return Pattern((rows, columns), tensors["indptr"].numpy(), tensors["indices"].numpy())
