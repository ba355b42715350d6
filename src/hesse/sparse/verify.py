"""The random check of sparse matrices: one product with the function's derivative beside that with the entries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hesse.autodiff.linearize import JacobianOperator
from hesse.autodiff.recording import Recording
from hesse.core import random
from hesse.core.errors import StructureError
from hesse.core.space import Space
from hesse.sparse.pattern import Pattern

_SUSPECTS = 4  # columns that are looked at one by one, where the products differ


@dataclass(frozen=True)
class Miss:
    """An entry that is wrong.

    Attributes:
        row, column: its place.
        exact: from a product with the unit vector of its column.
        given: what the sparse matrix holds there.
    """

    row: int
    column: int
    exact: float
    given: float


class Check:
    """Compares ``J^T u`` for one random u, always the same, with the product of the entries.

    Args:
        pattern: of the matrix.
        in_space, out_space: of its columns and rows.
    """

    def __init__(self, pattern: Pattern, in_space: Space, out_space: Space) -> None:
        self.in_space, self.out_space = in_space, out_space
        self._rows, self._columns = pattern.coordinates

    @cached_property
    def cotangent(self) -> list[Tensor]:
        """u, one tensor a leaf of the value."""
        return self.out_space.check(self.out_space.normal(generator=random.make_generator()), "cotangent")

    def product(self, recording: Recording) -> Tensor:
        """``J^T u``, flat, by a backward pass through the graph of a run.

        Cost: one backward pass.
        """
        pairs = zip(self.cotangent, recording.outputs, strict=True)
        pulled = recording.pull([u.to(y.device, y.dtype) for u, y in pairs])
        return recording.in_space.ravel(recording.in_space.rebuild(pulled)).detach()

    def suspects(self, expected: Tensor, entries: Tensor) -> list[int]:
        """Columns in which a product differs from that of the entries by more than rounding; the worst ones first.

        Args:
            expected: from `product`.
            entries: ``[nnz]``.

        Returns:
            At most four columns.
        """
        with torch.no_grad():
            u = self.out_space.ravel(self.out_space.rebuild(self.cotangent)).to(entries.device, torch.float64)
            terms = entries.detach().to(torch.float64) * u.index_select(0, self._rows.to(entries.device))
            expected, dtype = expected.to(torch.float64), entries.dtype
            found, sizes = self._sums(terms), self._sums(terms.abs())
            coarsest = max(torch.finfo(d).eps for d in (*self.in_space.dtypes, *self.out_space.dtypes, dtype))
            bar = 200 * coarsest * (sizes + expected.abs()) + 1e-30
            excess = torch.where(expected.isfinite(), (expected - found).abs() / bar, 0.0)
            excess = torch.where(expected.isfinite() == found.isfinite(), excess, math.inf)
            if not len(excess) or not bool((excess > 1).any()):
                return []
            worst = excess.topk(min(_SUSPECTS, len(excess)))
            return [int(c) for c, e in zip(worst.indices, worst.values, strict=True) if e > 1]

    def _sums(self, terms: Tensor) -> Tensor:
        """``[columns]``: sums over the entries of each column."""
        size = self.in_space.dim
        if terms.device.type == "cpu":  # ten times faster than index_add
            return torch.from_numpy(np.bincount(self._columns.numpy(), terms.numpy(), size))
        zeros = torch.zeros(size, dtype=terms.dtype, device=terms.device)
        return zeros.index_add(0, self._columns.to(terms.device), terms)

    def miss(self, recording: Recording, entries: Tensor, columns: list[int], *, floor: float = 0.0) -> Miss | None:
        """The worst wrong entry in some columns; None where they are right but for cancellation within the function.

        Args:
            recording: of a function, or of a gradient.
            entries: ``[nnz]``.
            columns: from `suspects`.
            floor: what is below it is rounding.

        Cost: a product with the derivative for each column.
        """
        power = 0.5 if _is_of_gradient(recording) else 0.75  # a second derivative has lost more digits
        for column in columns:
            exact, given = self._exact(recording, column), self._given(entries, column)
            differs = torch.where(exact.isfinite() & given.isfinite(), (exact - given).abs(), 0.0)
            differs = torch.where(exact.isfinite() == given.isfinite(), differs, math.inf)
            row = int(differs.argmax())
            finite = torch.where(exact.isfinite(), exact, 0.0).abs()
            if bool(differs[row] > torch.finfo(entries.dtype).eps ** power * finite.max() + floor):
                return Miss(row, column, float(exact[row]), float(given[row]))
        return None

    def _exact(self, recording: Recording, column: int) -> Tensor:
        unit = torch.zeros(self.in_space.dim, dtype=self.in_space.dtype, device=self.in_space.device)
        unit[column] = 1
        if _is_of_gradient(recording):
            pulled = recording.pull(recording.in_space.check(recording.in_space.unravel(unit), "unit vector"))
            return recording.in_space.ravel(recording.in_space.rebuild(pulled)).detach()
        product = JacobianOperator(recording) @ recording.in_space.unravel(unit)
        return recording.out_space.ravel(product).detach()

    def _given(self, entries: Tensor, column: int) -> Tensor:
        mine = self._columns == column
        known = torch.zeros(self.out_space.dim, dtype=entries.dtype, device=entries.device)
        known[self._rows[mine].to(entries.device)] = entries.detach()[mine.to(entries.device)]
        return known

    def error(self, miss: Miss) -> StructureError:
        """What to tell of a wrong entry."""
        named = f" ({place(self.out_space, miss.row, 'value')} by {place(self.in_space, miss.column, 'x')})"
        if self.in_space.names == self.out_space.names == ("",) and max(len(s) for s in (
            *self.in_space.shapes, *self.out_space.shapes)) <= 1:  # fmt: skip
            named = ""
        return StructureError(
            "The pattern of a sparse derivative holds every entry that is not zero.",
            f"{miss.exact:.6g} at row {miss.row}, column {miss.column}{named}, where the pattern gives {miss.given:.6g}",
            "pass no pattern, or one with this entry; a pattern of local=True holds where its branches are taken",
        )


def _is_of_gradient(recording: Recording) -> bool:
    """Whether the derivative is symmetric: rows and columns lie in the same space, not in equal ones only."""
    return recording.out_space is recording.in_space


def place(space: Space, position: int, whole: str) -> str:
    """An element of a flat vector by its leaf and the index in it: ``a.b[2, 0]``.

    Args:
        space: of the vector.
        position: in it.
        whole: the name of a leaf without one.
    """
    for name, shape, size in zip(space.names, space.shapes, space.sizes, strict=True):
        if position < size:
            index = []
            for length in reversed(shape):
                position, at = divmod(position, length)
                index.append(str(at))
            return f"{name or whole}[{', '.join(reversed(index))}]" if index else name or whole
        position -= size
    return whole
