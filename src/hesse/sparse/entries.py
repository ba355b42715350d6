"""The entries of a matrix from the products of a recorded derivative with the seeds of its colors."""

from __future__ import annotations

import threading
from typing import Any, Literal

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
_FEW = 8  # products that always share a pass, where memory allows
_Side = Literal["column", "row"]


class Entries:
    """Computes the entries of derivatives with one pattern, in products that share passes.

    Args:
        colored: the pattern and its colors.
        symmetric: whether the recordings are of gradients, whose columns are computed in reverse mode as well.
        memory: the budget.

    Attributes:
        fixed: tensors that never change, by their `id`: seeds, and places of entries in the products.
        chunks: passes that the products were spread over at the last run, for the budget's sake.
    """

    def __init__(self, colored: ColoredPattern, *, symmetric: bool, memory: Budget | None = None) -> None:
        self._colored, self._symmetric, self._memory = colored, symmetric, memory
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
        pieces: list[Tensor] = []
        sides: tuple[tuple[_Side, int], ...] = ("column", colored.columns), ("row", colored.rows)
        for kind, count in sides:
            if count:
                pieces += self._products(derivative, kind, careful)
        self.chunks = len(pieces)
        if not pieces:
            return derivative.outputs[0].detach().new_zeros(0, dtype=derivative.out_space.dtype)
        return self._decompression.values(torch.cat(pieces) if len(pieces) > 1 else pieces[0])

    def _products(self, derivative: Recording, kind: _Side, careful: bool) -> list[Tensor]:
        """The products of one kind, flat, ``[colors * rows]`` or ``[colors * columns]`` in pieces."""
        colored, pushes = self._colored, kind == "column" and not self._symmetric

        def run(vectors: list[Tensor]) -> list[Tensor]:
            return push_many(derivative, vectors, careful=careful) if pushes else pull_many(derivative, vectors)

        spaces = derivative.in_space, derivative.out_space
        given, other = spaces if pushes else spaces[::-1]
        count, colors = (colored.columns, colored.column_colors) if kind == "column" else (colored.rows, colored.row_colors)
        vectors, chunk = self._seeds_of(kind, colors, count, given), self._chunk(derivative, count, given, other)
        parts = [run([v[rows] for v in vectors] if chunk < count else vectors) for rows in slices(count, chunk, "colors")]
        return [_flat(part, other) for part in parts]

    def _chunk(self, derivative: Recording, count: int, given: Space, other: Space) -> int:
        """Products that share a pass: seeds in one space, products in the other, which are joined at the end."""
        if derivative.functorch:
            return count
        with unrecorded():
            one = max(derivative.graph_bytes(), 1)
            room = current_budget(self._memory, derivative.in_space.device)
            held = count * (given.dim * given.dtype.itemsize + 2 * other.dim * other.dtype.itemsize)
            fits = chunk_size(count, one, held, room, "a sparse derivative")
            return min(fits, max(_CACHE_BYTES // one, _FEW))

    def _seeds_of(self, kind: str, colors: Indices, count: int, space: Space) -> list[Tensor]:
        key = kind, space.dtypes, space.devices
        with temporarily_clear_interpreter_stack(), unrecorded(), self._lock, torch.no_grad():
            if key not in self._seeds:
                ones = seeds(colors, count)
                parts = ones.split(space.sizes, dim=-1)
                made = zip(parts, space.shapes, space.dtypes, space.devices, strict=True)
                self._seeds[key] = [self._kept(p.to(v, d).reshape(count, *s).contiguous()) for p, s, d, v in made]
        return self._seeds[key]

    def _kept(self, tensor: Tensor) -> Tensor:
        self.fixed[id(tensor)] = tensor
        return tensor


def _flat(products: list[Tensor], space: Space) -> Tensor:
    """``[k, *shape]`` of all leaves as ``[k * dim]``."""
    parts = [p.reshape(len(p), size).to(space.dtype) for p, size in zip(products, space.sizes, strict=True)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).reshape(-1)
