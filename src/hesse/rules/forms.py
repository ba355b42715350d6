"""Forms: what a layer rule may return for one use of one parameter.

A form stands for the rows ``j[n]`` (one for each sample, of the parameter's shape) without writing them out. Notation:
n sample, t shared position (over which the row is a sum), G group, a and b the two factors of the parameter.
A parameter that acts elementwise needs no form of its own: its rows are no larger than its layer's output, so its rule sums
over the shared positions at once and returns `Dense`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Rows(Protocol):
    """Something that gives tensors ``[n, G, t, a]`` for a slice of samples: a tensor, or patches cut when they are needed."""

    @property
    def shape(self) -> torch.Size:
        """``[n, G, t, a]``."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the tensors."""
        ...

    def __getitem__(self, samples: slice, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Contract:
    """``j[n] = sum_t left[n, G, t, :] (outer) right[n, G, t, :]``, of shape ``[G, a, b]``, viewed as the parameter.

    One of the two is the layer's input z, the other its output's cotangent g.
    """

    left: Rows
    right: Rows

    @property
    def matrix(self) -> tuple[int, int] | None:
        """``(a, b)`` if the rows are matrices (one group), else None."""
        return (self.left.shape[3], self.right.shape[3]) if self.left.shape[1] == 1 else None

    @property
    def dims(self) -> tuple[int, int, int, int, int]:
        """``n, G, t, a, b``."""
        n, groups, t, a = self.left.shape
        return n, groups, t, a, self.right.shape[-1]

    @property
    def count(self) -> int:
        """The number of samples."""
        return self.left.shape[0]

    def dense(self, samples: slice = slice(None)) -> Tensor:
        """The rows of some samples, ``[n, G, a, b]``."""
        return self.left[samples].mT @ self.right[samples]

    def transposed(self) -> Contract:
        """The form of the transposed (2-d) parameter."""
        return Contract(self.right, self.left)


@dataclass(frozen=True, eq=False)
class Lookup:
    """``j[n][index[n, t]] += g[n, t]``: rows of an embedding table with `table` rows.

    ``index`` is ``[n, t]``, ``g`` is ``[n, t, d]``.
    """

    index: Tensor
    g: Tensor
    table: int

    @property
    def count(self) -> int:
        """The number of samples."""
        return self.index.shape[0]

    def dense(self, samples: slice = slice(None)) -> Tensor:
        """The rows of some samples, ``[n, table, d]``."""
        index, g = self.index[samples], self.g[samples]
        rows = g.new_zeros(g.shape[0], self.table, g.shape[2])
        return rows.scatter_add_(1, index.unsqueeze(-1).expand_as(g), g)


@dataclass(frozen=True, eq=False)
class Dense:
    """The rows themselves, ``[n, *shape]``: for small parameters, and the exact fallback for everything else."""

    rows: Tensor

    @property
    def count(self) -> int:
        """The number of samples."""
        return self.rows.shape[0]

    def dense(self, samples: slice = slice(None)) -> Tensor:
        """The rows of some samples."""
        return self.rows[samples]


@dataclass(frozen=True, eq=False)
class Part:
    """A form for a box of the parameter (``W[:3]``, a part of a split): the rows are zero outside of it.

    Attributes:
        form: the rows inside of the box.
        box: ``(start, stop)`` along every axis of the parameter.
        whole: the parameter's shape.
    """

    form: Form
    box: tuple[tuple[int, int], ...]
    whole: torch.Size

    @property
    def count(self) -> int:
        """The number of samples."""
        return self.form.count

    def dense(self, samples: slice = slice(None)) -> Tensor:
        """The rows of some samples, ``[n, *whole]``."""
        return place(self.form.dense(samples), self.box, self.whole)


@dataclass(frozen=True, eq=False)
class Chained:
    """Rows of a weight that is itself a function of parameters, brought back to one of them a few samples at a time.

    Attributes:
        form: the rows of the weight.
        back: the transposed derivative of the weight by the parameter, for a few rows ``[n, *weight]`` at once.
        count: the number of samples.
    """

    form: Form
    back: Callable[[Tensor], Tensor]
    count: int

    def dense(self, samples: slice = slice(None)) -> Tensor:
        """The rows of some samples."""
        return self.back(self.form.dense(samples))


Form = Contract | Lookup | Dense | Part | Chained


def inside(tensor: Tensor, box: Sequence[tuple[int, int]]) -> Tensor:
    """The box of a tensor's last axes, as a view."""
    return tensor[(..., *(slice(start, stop) for start, stop in box))]


def place(rows: Tensor, box: Sequence[tuple[int, int]], whole: Sequence[int]) -> Tensor:
    """Rows ``[n, ...]`` of a box in rows ``[n, *whole]`` that are zero elsewhere."""
    result = rows.new_zeros(rows.shape[0], *whole)
    inside(result, box).copy_(rows.reshape(rows.shape[0], *(stop - start for start, stop in box)))
    return result
