"""Forms: what a layer rule may return for one use of one parameter.

A form stands for the rows ``j[n]`` (one for each sample, of the parameter's shape) without writing them out. Notation:
n sample, t shared position (over which the row is a sum), G group, a and b the two factors of the parameter.
A parameter that acts elementwise needs no form of its own: its rows are no larger than its layer's output, so its rule sums
over the shared positions at once and returns `Dense`.
"""

from __future__ import annotations

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
    def dims(self) -> tuple[int, int, int, int, int]:
        """``n, G, t, a, b``."""
        n, groups, t, a = self.left.shape
        return n, groups, t, a, self.right.shape[-1]

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

    def dense(self, samples: slice = slice(None)) -> Tensor:
        """The rows of some samples, ``[n, table, d]``."""
        index, g = self.index[samples], self.g[samples]
        rows = g.new_zeros(g.shape[0], self.table, g.shape[2])
        return rows.scatter_add_(1, index.unsqueeze(-1).expand_as(g), g)


@dataclass(frozen=True, eq=False)
class Dense:
    """The rows themselves, ``[n, *shape]``: for small parameters, and the exact fallback for everything else."""

    rows: Tensor

    def dense(self, samples: slice = slice(None)) -> Tensor:
        """The rows of some samples."""
        return self.rows[samples]


Form = Contract | Lookup | Dense
