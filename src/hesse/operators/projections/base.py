"""`RandomProjection`: a map to a few dimensions made from a seed, whose columns are computed when they are needed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from hesse.core.batching import slices
from hesse.core.errors import StructureError
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator

Places = slice | Tensor
_PIECES = 2**22  # entries of vectors, zeros between pieces counted in, worked on at a time


class RandomProjection(LinearOperator):
    """A random map P ``[k x D]`` with ``E PᵀP = 1``: inner products and squared norms are kept in expectation.

    It holds a seed and no numbers. What a column is depends on the seed and on the column's place alone, so the same P comes
    out on every device, for every batch and chunk, and in every process.

    Args:
        in_space: the space of dimension D.
        out_space: bare vectors ``[k]``, whose dtype is that of the results; sums are taken in float32 or better.
        seed: any integer, of which the lowest 64 bits count.

    Attributes:
        kind: the name of the distribution.
        seed: as given.
    """

    kind: ClassVar[str]

    def __init__(self, in_space: Space, out_space: Space, seed: int) -> None:
        self.in_space, self.out_space, self.seed = in_space, out_space, seed

    @property
    @final
    def rows(self) -> int:
        """k, the dimension after projection."""
        return self.out_space.dim

    @property
    @final
    def work_dtype(self) -> torch.dtype:
        """The dtype in which products are summed up."""
        return torch.promote_types(self.out_space.dtype, torch.float32)

    @property
    def settings(self) -> dict[str, Any]:
        """What tells this projection from others of the same space: texts and numbers, for the header of a file."""
        dtype = str(self.out_space.dtype).removeprefix("torch.")
        return {"kind": self.kind, "rows": self.rows, "columns": self.in_space.dim, "seed": self.seed, "dtype": dtype}

    @abstractmethod
    def width(self, count: int) -> int:
        """How many columns are worked on at a time, for `count` vectors."""

    @property
    def grain(self) -> int:
        """Columns that belong together: parts of them cost as much as all, so that pieces should be much larger."""
        return 1

    @abstractmethod
    def _times(self, vectors: Tensor, places: Places) -> Tensor:
        """``[n, c] -> [n, k]`` by some columns (at most `width`), in the working dtype."""

    @abstractmethod
    def _back(self, weights: Tensor, places: Places) -> Tensor:
        """``[n, k] -> [n, c]``: the transpose of `_times`."""

    @final
    def times(self, vectors: Tensor, places: Places | None = None) -> Tensor:
        """The product with vectors that are zero outside of some columns.

        Args:
            vectors: ``[n, c]``, c entries of each vector.
            places: which columns these are: a slice with both ends, or int64 ``[c]``; by default all.

        Returns:
            ``[n, k]`` in `work_dtype`. Products by disjoint columns add up to the whole product.

        Raises:
            StructureError: another shape.
        """
        places = slice(0, self.in_space.dim) if places is None else places
        self._require(vectors, places.stop - places.start if isinstance(places, slice) else len(places), "times(vectors)")
        vectors = vectors.to(self.work_dtype)
        total: Tensor | None = None
        for s in self._chunks(places, len(vectors)):
            part = self._times(vectors[:, s], _some(places, s))
            total = part if total is None else total + part
        return vectors.new_zeros(len(vectors), self.rows) if total is None else total

    def times_pieces(self, pieces: Tensor, vectors: Tensor, places: Tensor, count: int) -> Tensor:
        """The products with vectors of which few entries differ from zero, given by pieces.

        Args:
            pieces: ``[p, c]``: entries; pieces of one vector add up.
            vectors: which vector each piece is of, int64 ``[p]``.
            places: the columns of the entries, int64 ``[p, c]``; pieces with the same first column have all columns the same.
            count: the number of vectors.

        Returns:
            ``[count, k]`` in `work_dtype`.
        """
        pieces, size = pieces.to(self.work_dtype), pieces.shape[1]
        order = torch.argsort(places[:, 0], stable=True)
        _, group, sizes = torch.unique_consecutive(places[order, 0], return_inverse=True, return_counts=True)
        ends = sizes.cumsum(0)
        stops, columns = [0, *ends.tolist()], places[order[ends - sizes]]
        result = pieces.new_zeros(count, self.rows)
        for part in slices(len(columns), max(1, min(self.width(count), _PIECES // max(count, 1)) // size)):
            some = slice(stops[part.start], stops[part.stop])
            present, row = torch.unique(vectors[order[some]], return_inverse=True)
            width = part.stop - part.start
            block = pieces.new_zeros(len(present) * width, size)
            block = block.index_add(0, row * width + group[some] - part.start, pieces[order[some]])
            products = self.times(block.reshape(len(present), -1), columns[part].flatten())
            result = result.index_add(0, present, products)
        return result

    @final
    def back(self, weights: Tensor, places: Places | None = None) -> Tensor:
        """Some entries of the transposed products.

        Args:
            weights: ``[n, k]``.
            places: which entries, as for `times`.

        Returns:
            ``[n, c]`` in `work_dtype`.

        Raises:
            StructureError: another shape.
        """
        self._require(weights, self.rows, "back(weights)")
        places = slice(0, self.in_space.dim) if places is None else places
        weights = weights.to(self.work_dtype)
        parts = [self._back(weights, _some(places, s)) for s in self._chunks(places, len(weights))]
        return torch.cat(parts, 1) if parts else weights.new_zeros(len(weights), 0)

    def _require(self, block: Tensor, width: int, name: str) -> None:
        if block.ndim != 2 or block.shape[1] != width:
            found, remedy = f"shape {tuple(block.shape)}", "pass one vector a row; for trees use P @ v and P.T @ u"
            raise StructureError(f"P.{name} takes rows of {width} numbers.", found, remedy)

    def _chunks(self, places: Places, count: int) -> Iterator[slice]:
        """Parts of some columns that are worked on at a time, which end at multiples of the width where all follow."""
        width = self.width(count)
        first, total = (places.start, places.stop - places.start) if isinstance(places, slice) else (0, len(places))
        start = 0
        while start < total:
            stop = min(start + width - (first + start) % width, total)
            yield slice(start, stop)
            start = stop

    @final
    def mv(self, v: Tree) -> Tree:
        return self.out_space.unravel(self.times(self.in_space.ravel(v)[None])[0])

    @final
    def mm(self, V: Tree) -> Tree:
        return self.out_space.unravel(self.times(self.in_space.ravel(V, 1)))

    @final
    def transpose(self) -> LinearOperator:
        return _Transposed(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape[0]} x {self.shape[1]}, seed {self.seed})"


class _Transposed(LinearOperator):
    """The transpose of a random projection."""

    def __init__(self, projection: RandomProjection) -> None:
        self.projection = projection
        self.in_space, self.out_space = projection.out_space, projection.in_space

    def mv(self, v: Tree) -> Tree:
        return self.out_space.unravel(self.projection.back(self.in_space.ravel(v)[None])[0])

    def mm(self, V: Tree) -> Tree:
        return self.out_space.unravel(self.projection.back(self.in_space.ravel(V, 1)))

    def transpose(self) -> LinearOperator:
        return self.projection

    def __repr__(self) -> str:
        return f"{self.projection!r}.T"


def _some(places: Places, part: slice) -> Places:
    if isinstance(places, slice):
        return slice(places.start + part.start, places.start + part.stop)
    return places[part]
