"""Factors of the dense system of the border."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor


@final
class BorderFactors:
    """An LU decomposition of ``S`` ``[groups, size, size]``, which overwrites it: S may be as large as memory allows.

    Args:
        S: contiguous; LAPACK factors its transpose in place.

    Attributes:
        size: of the system, of each group.
        is_singular: whether a pivot is zero.
    """

    def __init__(self, S: Tensor) -> None:
        self.lu, self.size = S.mT, S.shape[-1]
        self.pivots, info = (torch.empty(0, dtype=torch.int32, device=S.device) for _ in range(2))
        torch.linalg.lu_factor_ex(self.lu, out=(self.lu, self.pivots, info))
        self.is_singular = bool(info.any())

    def solve(self, right: Tensor, *, adjoint: bool = False) -> Tensor:
        """``S^-1`` or ``S^-H`` times ``[k, groups, size]``."""
        columns = right.movedim(0, -1).conj().resolve_conj()
        found = torch.linalg.lu_solve(self.lu, self.pivots, columns, adjoint=not adjoint)
        return found.movedim(-1, 0).conj()
