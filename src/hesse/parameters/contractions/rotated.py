"""Squared rows in another basis: the eigenvalues of EKFAC."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.parameters.contractions.squares import summed_squares
from hesse.parameters.contractions.uses import Use
from hesse.rules.forms import Contract, Lookup, Rows


@dataclass(frozen=True, eq=False)
class _Rotated:
    """Rows ``[n, G, t, a]`` times a basis ``[G, a, a]``."""

    rows: Rows
    basis: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.rows.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.basis.dtype

    def __getitem__(self, samples: slice) -> Tensor:
        return self.rows[samples].to(self.basis.dtype) @ self.basis


def rotated_squares(use: Use, left: Tensor, right: Tensor) -> Tensor | None:
    """``[G, a, b]``: the squares of the rows in the basis ``left (x) right``, summed over samples.

    Args:
        use: a parameter's use.
        left, right: orthogonal, ``[G, a, a]`` and ``[G, b, b]``; ``[G, 0]`` stands for the identity.

    Returns:
        None for rows that are no products of two factors.
    """
    if isinstance(use, Contract):
        _, groups, _, a, b = use.dims
        turned = Contract(*(rows if P.ndim == 2 else _Rotated(rows, P) for rows, P in ((use.left, left), (use.right, right))))
        return summed_squares(turned, groups * a * b).reshape(groups, a, b)
    if isinstance(use, Lookup) and left.ndim == 2:
        g = use.g.to(right.dtype) @ right[0] if right.ndim == 3 else use.g
        return summed_squares(Lookup(use.index, g, use.table), use.table * g.shape[2]).reshape(1, use.table, -1)
    return None
