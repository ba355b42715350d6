"""The random check of sparse matrices: one product with the function's derivative beside that with the entries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hesse.autodiff.recording import Recording
from hesse.core import random
from hesse.core.errors import StructureError
from hesse.core.space import Space
from hesse.sparse.pattern import Pattern

REMEDY = "pass no pattern, or one with this entry; a pattern of local=True holds where its branches are taken"
_SUSPECTS = 4  # columns that are looked at one by one, where the products differ


@dataclass(frozen=True)
class Miss:
    """An entry that is wrong.

    Attributes:
        row, column: its place.
        exact: from a backward pass with the unit vector of its row.
        given: what the sparse matrix holds there.
        is_stored: whether the pattern has it.
    """

    row: int
    column: int
    exact: float
    given: float
    is_stored: bool


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
            u = self._flat_cotangent().to(entries.device)
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

        Reverse mode says what is right: the row is looked for with the part of u in one half of the rows, in a half of that,
        and so on; then the entry is computed with a unit vector.

        Cost: two backward passes for each halving of the rows, for each column.
        """
        power = 0.5 if _is_of_gradient(recording) else 0.75  # a second derivative has lost more digits
        found = None
        with torch.no_grad():
            for column in columns:
                miss, scale = self._entry(recording, entries, column)
                bar = torch.finfo(entries.dtype).eps ** power * scale + floor
                if miss is not None and _difference(miss.exact, miss.given) > bar:
                    if not miss.is_stored:  # the reason of others
                        return miss
                    found = found or miss
        return found

    def _entry(self, recording: Recording, entries: Tensor, column: int) -> tuple[Miss | None, float]:
        """The entry of a column that differs most, and the size of that column; None where reverse mode says nothing.

        An infinite derivative makes each product NaN in its column, whatever the vector.
        """
        mine = (self._columns == column).to(entries.device)
        values, rows = entries.detach()[mine].to(torch.float64).cpu(), self._rows[mine.to(self._rows.device)].cpu()
        u = self._flat_cotangent().cpu()

        def pulled(weights: Tensor, low: int, high: int) -> float:
            part = torch.zeros_like(weights)
            part[low:high] = weights[low:high]
            return float(self._pulled(recording, part)[column])

        def excess(low: int, high: int) -> float:
            inside = (rows >= low) & (rows < high)
            terms, exact = values[inside] * u[rows[inside]], pulled(u, low, high)
            differs = _difference(exact, float(terms.sum()))
            return differs / (float(terms.abs().sum()) + abs(exact) + 1e-300) if 0 < differs < math.inf else differs

        low, high = 0, self.out_space.dim
        if not math.isfinite(pulled(u, 0, 0)):
            return None, 0.0
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if excess(low, middle) >= excess(middle, high) else (middle, high)
        exact, stored = pulled(torch.ones_like(u), low, high), rows == low
        finite = [abs(v) for v in (exact, *values.tolist()) if math.isfinite(v)]
        is_stored = bool(stored.any())
        return Miss(low, column, exact, float(values[stored].sum()), is_stored), max(finite, default=0.0)

    def _flat_cotangent(self) -> Tensor:
        return self.out_space.ravel(self.out_space.rebuild(self.cotangent)).to(torch.float64)

    def _pulled(self, recording: Recording, u: Tensor) -> Tensor:
        """``J^T u``, flat."""
        parts = zip(u.split(recording.out_space.sizes), recording.outputs, strict=True)
        pulled = recording.pull([part.to(y.device, y.dtype).reshape(y.shape) for part, y in parts])
        return recording.in_space.ravel(recording.in_space.rebuild(pulled)).detach()

    def error(self, miss: Miss, remedy: str = REMEDY) -> StructureError:
        """What to tell of a wrong entry, and what can be done about it."""
        named = f" ({place(self.out_space, miss.row, 'value')} by {place(self.in_space, miss.column, 'x')})"
        if self.in_space.names == self.out_space.names == ("",) and max(len(s) for s in (
            *self.in_space.shapes, *self.out_space.shapes)) <= 1:  # fmt: skip
            named = ""
        exact, given = f"{miss.exact:.6g}", f"{miss.given:.6g}"
        if exact == given:
            exact, given = repr(miss.exact), repr(miss.given)
        return StructureError(
            "The pattern of a sparse derivative holds every entry that is not zero.",
            f"{exact} at row {miss.row}, column {miss.column}{named}, where the pattern gives {given}",
            remedy,
        )


def _difference(a: float, b: float) -> float:
    """Of two numbers; infinite where only one is finite."""
    if math.isfinite(a) and math.isfinite(b):
        return abs(a - b)
    return 0.0 if math.isfinite(a) == math.isfinite(b) else math.inf


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
