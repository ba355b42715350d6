"""The entries of a matrix from the products of a recorded derivative with the seeds of its colors."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from hesse.autodiff.compiled.unrecorded import unrecorded
from hesse.autodiff.products import pull_many, push_many
from hesse.autodiff.recording import Recording
from hesse.core.batching import slices
from hesse.core.memory import Budget, chunk_size, current_budget
from hesse.core.space import Space
from hesse.sparse.colored import ColoredPattern
from hesse.sparse.decompress import Decompression, seeds
from hesse.sparse.pattern import Indices

_CACHE_BYTES = 2**28  # a batched pass over more gains nothing
FEW = 8  # products that always share a pass, where memory allows
_SHARE = 0.5  # of the budget: products that take more are not kept until all are there
_Side = Literal["column", "row"]


class Entries:
    """Computes the entries of derivatives with one pattern, in products that share passes.

    Args:
        colored: the pattern and its colors.
        symmetric: whether the recordings are of gradients, whose columns are computed in reverse mode as well.
        memory: the budget.
        reused: whether more derivatives will follow, so that seeds are kept. Otherwise those of a pass are made for it, and
            entries are read from its products at once, where all products would take a good part of the budget.

    Attributes:
        fixed: tensors that never change, by their `id`: seeds, and places of entries in the products.
        chunks: passes that the products were spread over at the last run, for the budget's sake.
    """

    def __init__(
        self, colored: ColoredPattern, *, symmetric: bool, memory: Budget | None = None, reused: bool = True
    ) -> None:
        self._colored, self._symmetric, self._memory, self._reused = colored, symmetric, memory, reused
        self.fixed: dict[int, Tensor] = {}
        self.chunks = 1
        self._decompression = Decompression.of(colored)
        for index in self._decompression.indices():
            self._kept(index)
        self._seeds: dict[Any, list[Tensor]] = {}
        self._lock = threading.Lock()

    def __call__(self, derivative: Recording, *, careful: bool = False) -> Tensor:
        """The entries at the point of a recording.

        Args:
            derivative: of a function for its Jacobian, of a gradient for a Hessian.
            careful: as for `push_many`.

        Returns:
            ``[nnz]``, in the order of the pattern, of the dtype of the value; differentiable where something upstream requires
            grad.

        Raises:
            MemoryBudgetError: not even one product fits. NoPushError: columns cannot be computed without another run.

        Cost: a product a color, batched.
        """
        colored = self._colored
        sides: tuple[tuple[_Side, int], ...] = ("column", colored.columns), ("row", colored.rows)
        all_of_them = self._joined_bytes(derivative)
        joined = self._reused or derivative.functorch or all_of_them <= _SHARE * self._room(derivative, besides=True)
        held = 0 if self._reused or not joined else all_of_them
        products = itertools.chain.from_iterable(
            self._products(derivative, kind, careful, held) for kind, count in sides if count
        )
        pieces = list(products) if joined else self._decompression.read(products)
        self.chunks = len(pieces)
        if not pieces:
            return derivative.outputs[0].detach().new_zeros(0, dtype=derivative.out_space.dtype)
        whole = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        return self._decompression.values(whole) if joined else self._decompression.ordered(whole)

    def _room(self, derivative: Recording, *, besides: bool = False) -> int:
        """Bytes of the budget; what is left of them beside one product, with `besides`."""
        with unrecorded():
            room = current_budget(self._memory, derivative.in_space.device)
            return room - self._each(derivative) if besides else room

    def _each(self, derivative: Recording) -> int:
        """Bytes of the work on one product, its seed and the product, where seeds are not kept."""
        spaces = derivative.in_space, derivative.out_space
        return max(derivative.graph_bytes(), 1) + sum(2 * space.dim * space.dtype.itemsize for space in spaces)

    def _joined_bytes(self, derivative: Recording) -> int:
        """Of all products and a copy of them."""
        (rows, columns), unit = self._colored.pattern.shape, derivative.out_space.dtype.itemsize
        return 2 * unit * (self._colored.columns * rows + self._colored.rows * columns)

    def _products(self, derivative: Recording, kind: _Side, careful: bool, held: int) -> Iterator[Tensor]:
        """The products of one kind, flat, ``[colors * rows]`` or ``[colors * columns]`` in pieces."""
        colored, pushes = self._colored, kind == "column" and not self._symmetric

        def run(vectors: list[Tensor]) -> list[Tensor]:
            return push_many(derivative, vectors, careful=careful) if pushes else pull_many(derivative, vectors)

        spaces = derivative.in_space, derivative.out_space
        given, other = spaces if pushes else spaces[::-1]
        count, colors = (colored.columns, colored.column_colors) if kind == "column" else (colored.rows, colored.row_colors)
        chunk = self._chunk(derivative, count, held, (given, other))
        vectors = self._seeds_of(kind, colors, count, given) if self._reused else []
        for rows in slices(count, chunk, "colors"):
            if not self._reused:
                vectors = self._made(colors, rows, given)
            yield _flat(run([v[rows] for v in vectors] if self._reused and chunk < count else vectors), other)

    def _chunk(self, derivative: Recording, count: int, held: int, spaces: tuple[Space, Space]) -> int:
        """Products that share a pass: seeds in one space, products in the other.

        Args:
            derivative: what is differentiated.
            count: how many products.
            held: bytes of all of them, where seeds are not kept.
            spaces: of the seeds and of the products.
        """
        if derivative.functorch:
            return count
        with unrecorded():
            one = max(derivative.graph_bytes(), 1)
            seed, product = (space.dim * space.dtype.itemsize for space in spaces)
            each, fixed = (one, count * (seed + 2 * product)) if self._reused else (self._each(derivative), held)
            fits = chunk_size(count, each, fixed, self._room(derivative), "a sparse derivative")
            return min(fits, max(_CACHE_BYTES // one, FEW))

    def _seeds_of(self, kind: str, colors: Indices, count: int, space: Space) -> list[Tensor]:
        key = kind, space.dtypes, space.devices
        with temporarily_clear_interpreter_stack(), unrecorded(), self._lock, torch.no_grad():
            if key not in self._seeds:
                self._seeds[key] = [self._kept(part) for part in _split(seeds(colors, count), space)]
        return self._seeds[key]

    @staticmethod
    def _made(colors: Indices, rows: slice, space: Space) -> list[Tensor]:
        """The seeds of some colors, not kept."""
        with temporarily_clear_interpreter_stack(), unrecorded(), torch.no_grad():
            own = np.where((colors >= rows.start) & (colors < rows.stop), colors - rows.start, -1)
            return _split(seeds(own, rows.stop - rows.start), space)

    def _kept(self, tensor: Tensor) -> Tensor:
        self.fixed[id(tensor)] = tensor
        return tensor


def _split(ones: Tensor, space: Space) -> list[Tensor]:
    """``[k, dim]`` as ``[k, *shape]`` for each leaf."""
    made = zip(ones.split(space.sizes, dim=-1), space.shapes, space.dtypes, space.devices, strict=True)
    return [part.to(device, dtype).reshape(len(ones), *shape).contiguous() for part, shape, dtype, device in made]


def _flat(products: list[Tensor], space: Space) -> Tensor:
    """``[k, *shape]`` of all leaves as ``[k * dim]``."""
    parts = [p.reshape(len(p), size).to(space.dtype) for p, size in zip(products, space.sizes, strict=True)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).reshape(-1)
