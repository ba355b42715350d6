"""Jacobians and Hessians by colors: one product serves all columns, or rows, that share no entry."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.autodiff.push_rules import NoPushError
from hesse.autodiff.recording import Recording
from hesse.autodiff.room import Room
from hesse.core.errors import MemoryBudgetError
from hesse.core.memory import chunk_size, current_budget
from hesse.core.space import Space
from hesse.derivatives.batched import unraveled
from hesse.derivatives.forward import Table
from hesse.operators.base import LinearOperator, Tag
from hesse.operators.sparse import Sparse
from hesse.sparse.colored import ColoredPattern
from hesse.sparse.coloring import coloring
from hesse.sparse.entries import Entries
from hesse.sparse.pattern import Pattern
from hesse.sparse.stages import Stages
from hesse.sparse.verify import Check, Miss

_PLACES = 24  # bytes of the row and the column of an entry, and of its place in a dense result


@dataclass(frozen=True, eq=False)
class SparseMatrix:
    """A matrix by its entries that may differ from zero.

    Attributes:
        pattern: their places.
        values: ``[nnz]``, in its order.
        in_space, out_space: of columns and rows.
        tags: what is known of the matrix.
    """

    pattern: Pattern
    values: Tensor
    in_space: Space
    out_space: Space
    tags: frozenset[Tag] = frozenset()

    def places(self) -> Tensor:
        """``[2, nnz]``: rows and columns."""
        return self.pattern.coordinates.to(self.values.device)

    def operator(self) -> LinearOperator:
        """The matrix as an operator."""
        return Sparse(self.places(), self.values, self.in_space, self.out_space, self.tags)

    def table(self, layout: str, room: Room) -> Table:
        """For each pair of an output leaf and an input leaf a tensor ``out.shape + x.shape``.

        Args:
            layout: "dense", or "sparse" (COO).
            room: the memory that the call may take.

        Raises:
            MemoryBudgetError: the dense result does not fit.
        """
        if layout == "dense":
            _, result = result_bytes(layout, self.out_space, self.in_space)
            chunk_size(1, 0, result, current_budget(room.given, self.in_space.device), "a dense result")
        make = _dense if layout == "dense" else _sparse
        (rows, columns), out, into = self.places(), self.out_space, self.in_space
        if len(out.names) == len(into.names) == 1:
            return [[make(rows, columns, self.values.to(into.dtype), out.shapes[0], into.shapes[0])]]
        table, top = [], 0
        for height, shape in zip(out.sizes, out.shapes, strict=True):
            low, high = (int(self.pattern.indptr[end]) for end in (top, top + height))
            line, left = [], 0
            for width, other, dtype in zip(into.sizes, into.shapes, into.dtypes, strict=True):
                own = (columns[low:high] >= left) & (columns[low:high] < left + width)
                places = rows[low:high][own] - top, columns[low:high][own] - left
                line.append(make(*places, self.values[low:high][own].to(dtype), shape, other))
                left += width
            table.append(line)
            top += height
        return table


def result_bytes(layout: str, out_space: Space, in_space: Space) -> tuple[int, int]:
    """Bytes of a result for each of its entries, while it is made, and at any rate.

    Args:
        layout: "dense", "sparse" or "operator".
        out_space, in_space: of its rows and columns.
    """
    unit = in_space.dtype.itemsize
    if layout == "operator":
        return _PLACES, 0
    if layout == "dense":
        return _PLACES + unit, out_space.dim * in_space.dim * unit
    axes = max(map(len, out_space.shapes)) + max(map(len, in_space.shapes))
    return _PLACES + 2 * 8 * axes + unit, 0


def _dense(rows: Tensor, columns: Tensor, values: Tensor, out: torch.Size, into: torch.Size) -> Tensor:
    flat = values.new_zeros(out.numel() * into.numel())
    return flat.index_put_((rows * into.numel() + columns,), values).reshape(out + into)


def _sparse(rows: Tensor, columns: Tensor, values: Tensor, out: torch.Size, into: torch.Size) -> Tensor:
    indices = [*unraveled(rows, out), *unraveled(columns, into)]
    stacked = torch.stack(indices) if indices else rows.new_zeros(0, len(rows))
    return torch.sparse_coo_tensor(stacked, values, out + into, is_coalesced=True, check_invariants=False)


def values_by_colors(source: Recording, colored: ColoredPattern, stages: Stages, *, forced: bool = False) -> Tensor:
    """The entries of a Jacobian from products with sums of its columns and of its rows, checked by a random product.

    Args:
        source: the function; its gradient for a Hessian.
        colored: the pattern and its colors; symmetric ones for a gradient.
        stages: the memory budget.
        forced: columns have to be computed, by running the function again where its graph is not enough. Otherwise rows are
            taken where columns cannot be computed, or come out otherwise than in reverse mode.

    Returns:
        ``[nnz]``, differentiable with respect to whatever upstream requires grad.

    Raises:
        StructureError: the pattern misses an entry. UnsupportedError: with `forced`, columns cannot be computed.
        MemoryBudgetError: not even one product fits.

    Cost: a product a color, batched, and one backward pass.
    """
    left, given = stages.left(colored.pattern), stages.room.given
    try:
        return _values(source, colored, left, forced)
    except MemoryBudgetError as error:
        if given is None or left is None:
            raise
        raise stages.room.refusal(error.least + given - left, "a sparse derivative") from error


def _values(source: Recording, colored: ColoredPattern, memory: int | None, forced: bool) -> Tensor:
    symmetric = colored.kind in ("star", "acyclic")
    check = Check(colored.pattern, source.in_space, source.out_space)
    pushes = bool(colored.columns) and not symmetric
    miss: Miss | None = None
    with suppress(NoPushError):
        values = Entries(colored, symmetric=symmetric, memory=memory, reused=False)(source)
        miss = _missed(check, source, values)
        if miss is None:
            return values
    if pushes and (miss is None or miss.is_stored):
        again = colored if forced else coloring(colored.pattern, kind="row")
        values = Entries(again, symmetric=False, memory=memory, reused=False)(source, careful=forced)
        miss = _missed(check, source, values)
        if miss is None:
            return values
    assert miss is not None
    raise check.error(miss)


def _missed(check: Check, source: Recording, values: Tensor) -> Miss | None:
    with torch.no_grad():
        suspects = check.suspects(check.product(source), values)
        miss = check.miss(source, values, suspects) if suspects else None
    return None if miss is None or abs(miss.exact - miss.given) <= _rounding(values, miss.exact) < math.inf else miss


def _rounding(values: Tensor, exact: float) -> float:
    """What terms that cancel within the function may leave: half of the digits of the largest entry."""
    largest = float(values.detach().abs().max()) if len(values) else 0.0
    return torch.finfo(values.dtype).eps ** 0.5 * max(abs(exact), largest)
