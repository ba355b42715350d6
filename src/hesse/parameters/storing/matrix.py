"""`open_zarr`: a stored Jacobian or Gram matrix, read lazily, and an operator over its file."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hesse.core.batching import slices
from hesse.core.chunk_store import ChunkStore
from hesse.core.errors import DeviceError, LeafError, StoreError, StructureError
from hesse.core.memory import Budget, chunk_size, current_budget
from hesse.core.names import layer_of
from hesse.core.progress import track
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.linalg.dense import dense_rule
from hesse.linalg.diagonal import column_squares_rule
from hesse.linalg.woodbury import gram_rule
from hesse.operators.base import LinearOperator, Tag
from hesse.parameters.base import Per
from hesse.parameters.storing.bands import Bands
from hesse.parameters.storing.choosing import chosen_rows
from hesse.parameters.storing.products import add_inner_products, contract, row_norms
from hesse.parameters.storing.spaces import space_from_json

_FACTS = {kind: {"columns", "mass"} for kind in ("rows", "projected rows")} | {"gram": {"columns", "mass", "symmetric"}}
"""What the header of each kind says besides."""

_DEVICE = "Rows and products go to a device of this machine."


class StoredMatrix(LinearOperator):
    """A Jacobian, projected Jacobian or Gram matrix on disk; made by `open_zarr`.

    An operator over the file: ``R @ v`` and ``R.T @ u`` read it once, chunk by chunk. ``R[10:20]`` reads rows. Every chunk that
    is read is checked against its checksum. ``for row in R`` reads a row of chunks at a time; ``np.asarray(R)`` reads all rows.

    Attributes:
        kind: "rows", "projected rows" or "gram".
        samples: which samples the rows are of, int64 ``[N]``: all of them, unless it was opened with ``partial=True``.
        mass: of the Jacobian that was stored.
        path: of the folder.
    """

    __array_ufunc__ = None  # np.float64(2) * R is an operator

    def __init__(self, bands: Bands) -> None:
        store, layout = bands.store, bands.layout
        self.bands, self.kind, self.path = bands, store.kind, store.path
        self.in_space = space_from_json(store.facts["columns"], bands.device)
        inner = len(self.in_space.shapes[0]) if self.kind == "gram" else 1
        self._split = len(layout.shape) - inner
        shape = (bands.count, *layout.shape[1 : self._split])
        self.out_space = _bare(shape, layout.dtype, bands.device)
        self.mass = store.facts["mass"]
        whole = bands.count == bands.total
        if self.kind == "gram" and store.facts["symmetric"] and whole:
            self.tags = frozenset({Tag.SYMMETRIC, Tag.HERMITIAN, Tag.PSD})

    @property
    def samples(self) -> Tensor:
        """Which samples the rows are of, int64 ``[N]``."""
        return self.bands.samples

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored numbers."""
        return self.bands.layout.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix when it is written out."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def __len__(self) -> int:
        return self.bands.count

    def __getitem__(self, samples: Any) -> Tensor:
        """Rows ``[n, ..., D]`` (an int: one row without the first axis), read now; each chunk they touch is read once.

        A choice of no rows, such as a mask without a hit, gives ``[0, ..., D]``.

        Args:
            samples: an int (also of NumPy, or a tensor of no axis), a slice or ``...``, a list of numbers, an integer tensor
                ``[n]``, or a boolean one ``[N]``.

        Raises:
            StructureError: no such row. StoreError: a damaged chunk. MemoryBudgetError: they are larger than the budget.
        """
        index, one = chosen_rows(samples, len(self))
        self._require_room(len(index), math.prod(self.bands.layout.shape[1:]))
        found = self.bands.rows(index)
        return found[0] if one else found

    def __iter__(self) -> Iterator[Tensor]:
        """The rows ``[..., D]``, one after the other, each a tensor of its own.

        Raises:
            StoreError: a damaged chunk. MemoryBudgetError: two rows are larger than the budget.

        Cost: each chunk is read once; where a row of chunks is larger than half of the budget, as often as it has to be taken
            in parts.
        """
        each = math.prod(self.bands.layout.shape[1:]) * self.dtype.itemsize
        for band in self.bands.bands:
            count = band.rows.stop - band.rows.start
            at_once = chunk_size(count, 2 * each, 0, current_budget(None, self.bands.device), "a row of a stored matrix")
            for part in slices(count, at_once):
                for row in self.bands.rows(torch.arange(band.rows.start + part.start, band.rows.start + part.stop)):
                    yield row.clone()

    def __contains__(self, value: object) -> bool:
        raise StructureError(
            "A stored matrix says by no 'in' what it contains.",
            type(value).__name__,
            "write any(torch.equal(row, wanted) for row in R), or look at R.samples",
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All rows as an array of NumPy, for ``np.asarray(R)``.

        Args:
            dtype: of the array; by default that of the stored numbers.
            copy: False asks for an array of memory that there is, which a file is not.

        Raises:
            MemoryBudgetError: they are larger than the budget. LeafError: bfloat16 without `dtype`, which NumPy has not.
            ValueError: ``copy=False``, as NumPy wants it.
        """
        if copy is False:
            raise ValueError("a stored matrix is read into new memory: np.asarray(R), without copy=False")
        if self.dtype == torch.bfloat16 and dtype is None:
            raise LeafError("np.asarray(R) is an array of NumPy.", "bfloat16, which NumPy has not", "pass dtype=np.float32")
        values = self[:].cpu()
        return (values.float() if self.dtype == torch.bfloat16 else values).numpy().astype(dtype, copy=False)

    def leaf(self, name: str, samples: Any = None) -> Tensor:
        """The rows by one parameter: ``[n, *shape]`` (``[n, C, *shape]``); only the chunks with its columns are read.

        Args:
            name: of the parameter.
            samples: which rows, as in ``R[samples]``; by default all.

        Raises:
            StructureError: no such parameter or row, or columns that are no parameters. MemoryBudgetError: larger than the
                budget.
        """
        names = list(self.in_space.names)
        if self.kind != "rows" or name not in names:
            found = f"a matrix of {self.kind}" if self.kind != "rows" else f"no parameter {name!r}"
            raise StructureError("leaf(name) reads the rows by one parameter.", found, f"one of {names[:8]}")
        place = names.index(name)
        start, size = sum(self.in_space.sizes[:place]), self.in_space.sizes[place]
        index, one = chosen_rows(slice(None) if samples is None else samples, len(self))
        inner = [slice(0, side) for side in self.bands.layout.shape[1:-1]]
        self._require_room(len(index), math.prod(self.bands.layout.shape[1:-1]) * size)
        found = self.bands.rows(index, [*inner, slice(start, start + size)])
        found = found.reshape(*found.shape[:-1], *self.in_space.shapes[place]).to(self.in_space.dtypes[place])
        return found[0] if one else found

    def _require_room(self, rows: int, each: int) -> None:
        budget = current_budget(None, self.bands.device)
        chunk_size(1, rows * each * self.dtype.itemsize, 0, budget, f"{rows} rows of {each} numbers")

    def mv(self, v: Tree) -> Tree:
        return self.out_space.rebuild([self._rows_times(self.in_space.ravel(v)[None])[0]])

    def mm(self, V: Tree) -> Tree:
        return self.out_space.rebuild([self._rows_times(self.in_space.ravel(V, 1))])

    def _rows_times(self, vectors: Tensor) -> Tensor:
        """``[k, D] -> [k, N, ...]``."""
        rows, columns = self._axes
        vectors = vectors.unflatten(1, self.bands.layout.shape[self._split :])
        return self._product(vectors, columns, rows, self.out_space.shapes[0])

    def _times_rows(self, weights: Tensor) -> Tensor:
        """``[k, N, ...] -> [k, D]``."""
        rows, columns = self._axes
        return self._product(weights, rows, columns, self.bands.layout.shape[self._split :]).flatten(1)

    @property
    def _axes(self) -> tuple[list[int], list[int]]:
        return list(range(self._split)), list(range(self._split, len(self.bands.layout.shape)))

    def _product(self, vectors: Tensor, over: list[int], left: list[int], shape: tuple[int, ...]) -> Tensor:
        """``[k, *over] -> [k, *left]``, a chunk at a time."""
        work = _work_dtype(self.dtype)
        vectors = vectors.to(self.bands.device, work)
        result = torch.zeros(len(vectors), *shape, dtype=work, device=self.bands.device)
        for tile in self._tiles("stored matrix times vectors"):
            part = vectors[(slice(None), *(tile.place[axis] for axis in over))]
            result[(slice(None), *(tile.place[axis] for axis in left))] += contract(part, tile.values.to(work), over)
        return result.to(self.dtype)

    def _tiles(self, label: str) -> Any:
        return track(self.bands.tiles(), label, None)

    def transpose(self) -> LinearOperator:
        return _Transposed(self)

    def dense(self) -> Tensor:
        """The whole matrix ``[N, ..., D]``.

        Raises:
            MemoryBudgetError: it is larger than the budget.
        """
        return self[:]

    def gram(self) -> Tensor:
        """Inner products of the rows: ``[N, N]`` (``[N, C, N, C]``).

        Raises:
            MemoryBudgetError: the result and a band of columns of two rows are larger than the budget.

        Cost: reads the file once if a column of chunks fits into the budget beside the result; where only a part of its rows
        does, about (rows / those that fit) / 2 times.
        """
        if self.kind == "gram":
            raise StructureError("gram() takes inner products of rows.", "a Gram matrix already", "hesse.dense(R @ R.T)")
        work, shape = _work_dtype(self.dtype), self.out_space.shapes[0]
        width, each = self.bands.layout.chunks[-1], math.prod(shape[1:])
        band = max(b.rows.stop - b.rows.start for b in self.bands.bands) * each * width * work.itemsize
        taken, budget = self.out_space.dim**2 * work.itemsize, current_budget(None, self.bands.device)
        what = f"inner products of {self.out_space.dim} rows"
        held = chunk_size(len(self.bands.bands), band, taken + 6 * band, budget, what)
        result = torch.zeros(len(self), each, len(self), each, dtype=work, device=self.bands.device)
        for columns in slices(self.in_space.dim, width, "inner products"):
            inner = [*(slice(0, side) for side in shape[1:]), columns]
            for part in slices(len(self.bands.bands), held):
                add_inner_products(self.bands, part, inner, result)
        return result.reshape(*shape, *shape).to(self.dtype)

    def norms(self, per: Per = None) -> Any:
        """2-norms of the rows: ``[N]`` (``[N, C]``), or a dict of them by name of the parameter or of the layer.

        Args:
            per: None, "parameter" or "layer", as for `ParameterJacobian.norms`; projected rows have no parameters.

        Raises:
            StructureError: parts of rows that are no parameters', or a Gram matrix.

        Cost: reads the file once.
        """
        if self.kind == "gram":
            remedy = "hesse.diagonal(R).sqrt() are the norms of the rows whose inner products these are"
            raise StructureError("norms() are of the rows of a Jacobian.", "a Gram matrix", remedy)
        names: dict[Any, Callable[[str], str]] = {None: lambda name: "", "parameter": str, "layer": layer_of}
        if per not in names or (per is not None and self.kind != "rows"):
            found = repr(per) + ("" if self.kind == "rows" else f" of {self.kind}")
            raise StructureError("norms(per=...) takes None, or for rows 'parameter' or 'layer'.", found, "pass one of these")
        groups: dict[str, list[slice]] = {}
        stops = itertools.accumulate(self.in_space.sizes)
        for name, size, stop in zip(self.in_space.names, self.in_space.sizes, stops, strict=True):
            groups.setdefault(names[per](name), []).append(slice(stop - size, stop))
        found = row_norms(self.bands, groups, tuple(self.out_space.shapes[0]))
        return found[""] if per is None else found

    def column_squares(self) -> Tensor:
        """The squares of the rows, summed over rows: ``[D]``."""
        work, split = _work_dtype(self.dtype), self._split
        result = torch.zeros(self.bands.layout.shape[split:], dtype=work, device=self.bands.device)
        for tile in self._tiles("stored squares"):
            result[tile.place[split:]] += tile.values.to(work).square().sum(list(range(split)))
        return result.flatten()

    def __repr__(self) -> str:
        rows = " x ".join(map(str, self.out_space.shapes[0]))
        some = "" if len(self) == self.bands.total else f" of {self.bands.total}"
        return f"StoredMatrix({self.kind}, {rows}{some} by {self.in_space.dim}, at '{self.path}')"


class _Transposed(LinearOperator):
    """The transpose of a stored matrix: weighted sums of its rows."""

    def __init__(self, matrix: StoredMatrix) -> None:
        self.matrix, self.mass, self.tags = matrix, matrix.mass, matrix.tags
        self.in_space, self.out_space = matrix.out_space, matrix.in_space

    def mv(self, v: Tree) -> Tree:
        (weights,) = self.in_space.check(v, "weights of the rows")
        return self.out_space.unravel(self.matrix._times_rows(weights[None])[0])

    def mm(self, V: Tree) -> Tree:
        (weights,) = self.in_space.check(V, "weights of the rows", 1)
        return self.out_space.unravel(self.matrix._times_rows(weights))

    def transpose(self) -> LinearOperator:
        return self.matrix


def open_zarr(
    path: str | os.PathLike[str], *, partial: bool = False, device: torch.device | str = "cpu"
) -> StoredMatrix:
    """Open a Jacobian, projected Jacobian or Gram matrix that `to_zarr` or `gram_to_zarr` has written.

    The folder is of the zarr format (version 3): ``zarr.open(path)["rows"][10:20]`` reads it, too.

    Args:
        path: of the folder.
        partial: whether to take the complete rows of a folder that is not complete; `samples` tells which they are.
        device: where rows and products go.

    Returns:
        A `StoredMatrix`: ``R[10:20]``, ``R.leaf(name)``, ``R @ v``, ``R.T @ u``, ``R.gram()``, and an operator for every
        question (`hesse.svd`, `hesse.solve`, ...).

    Raises:
        StoreError: no folder; written by another program, or of a newer format; not complete, without `partial`; no complete
        row; later, in a read, a damaged chunk. DeviceError: no such device here.

    Cost: the sizes of all files are looked up; no number is read.
    """
    store = ChunkStore.open(path)
    if store.kind not in _FACTS or not _FACTS[store.kind] <= set(store.facts):
        found = f"'{store.path}' holds {store.kind!r}, with {sorted(store.facts)}"
        raise StoreError(f"open_zarr opens {', '.join(_FACTS)}.", found, "write it by to_zarr or gram_to_zarr")
    return StoredMatrix(Bands(store, partial, _usable(device)))


def _usable(device: torch.device | str) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, AssertionError, ImportError) as error:  # NotImplementedError is a RuntimeError
        first = str(error).splitlines()[0]
        raise DeviceError(_DEVICE, f"{device!r} ({first})", "pass device='cpu', or a device that torch can use here") from error
    if found.type == "meta":
        raise DeviceError(_DEVICE, "'meta', which holds no numbers", "pass device='cpu'")
    return found


def _work_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize < 4 else dtype


def _bare(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Space:
    return Space.of(torch.empty((), dtype=dtype, device=device).expand(shape))


@dense_rule.register(StoredMatrix)
def _dense(A: StoredMatrix, memory: Budget | None = None) -> Tensor:
    return A.dense().reshape(A.shape)


@column_squares_rule.register(StoredMatrix)
def _column_squares(A: StoredMatrix) -> Tensor:
    return A.column_squares()


@gram_rule.register(StoredMatrix)
def _gram(A: StoredMatrix) -> Tensor | None:
    return None if A.kind == "gram" else A.gram().reshape(A.shape[0], A.shape[0])
