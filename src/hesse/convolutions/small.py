"""Small convolutions: the singular value decomposition of the matrix, one for each group."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from hesse.convolutions.geometry import Geometry
from hesse.convolutions.inverse import Applied, Inverse
from hesse.convolutions.operator import Convolution
from hesse.convolutions.truncation import cut, cutoff_ratio, decompose, factor_dtype
from hesse.core.memory import Budget, current_budget

_LARGEST_SIDE = 1500  # the smaller side of a group's matrix: 5 to 10 s on two cores
_COPIES = 5  # the matrix, what LAPACK makes of it, and the factors


def make(A: Convolution, *, rtol: float | None = None, memory: Budget | None = None) -> DenseInverse | None:
    """The inverse by the matrix, or None where that is too large.

    Args:
        A: the convolution.
        rtol: as for `torch.linalg.pinv`.
        memory: the budget; by default the one in force.

    Cost: ``groups m n min(m, n)`` for the sides m, n of a group's matrix, in double precision.
    """
    g = A.geometry
    m, n = g.out_dim // g.groups, g.in_dim // g.groups
    needed = _COPIES * g.groups * m * n * factor_dtype(A.weight.dtype).itemsize
    if min(m, n) > _LARGEST_SIDE or needed > current_budget(memory, A.weight.device):
        return None
    return DenseInverse(A, cutoff_ratio(A, rtol))


@final
class DenseInverse(Inverse):
    """The pseudo-inverse by singular values of the matrix of each group, with one cut-off for all groups.

    Attributes:
        factors: ``[groups, ...]``, in double precision.
        cut: where singular values were cut off.
    """

    method = "dense"

    def __init__(self, A: Convolution, rtol: float) -> None:
        self.convolution = A
        self.factors = decompose(group_matrices(A.geometry, A.weight.detach().to(factor_dtype(A.weight.dtype))))
        values = self.factors.values
        self.cut = cut(values, torch.ones_like(values, dtype=torch.int64), rtol, max(A.shape) // A.geometry.groups)
        self.truncated, self.gap = self.cut.truncated, self.cut.gap

    def apply(self, Y: Tensor, *, adjoint: bool = False) -> Applied:
        g = self.convolution.geometry
        rows = Y.reshape(len(Y), g.groups, -1).transpose(0, 1).to(self.factors.U.dtype)
        X = self.factors.pinv_rows(rows, self.cut.threshold, adjoint=adjoint).transpose(0, 1)
        return Applied(X.reshape(len(Y), *(g.out_shape if adjoint else g.in_shape)).to(Y.dtype))

    def norm(self) -> float:
        return self.cut.norm

    def condition(self) -> float:
        return self.cut.condition

    def singular_values(self) -> Tensor:
        """All ``min(m, n)`` of each group, in descending order, in double precision."""
        return self.factors.values.flatten().sort(descending=True).values

    def null_vectors(self, *, adjoint: bool = False) -> Tensor:
        """``[nullity, *in_shape]``: orthonormal images that count as mapped to zero; with `adjoint` those of ``A^H``."""
        g = self.convolution.geometry
        shape = g.out_shape if adjoint else g.in_shape
        found = []
        for group in range(g.groups):
            rows = type(self.factors)(*(t[group] for t in self.factors)).null_rows(self.cut.threshold, adjoint=adjoint)
            whole = rows.new_zeros(len(rows), g.groups, rows.shape[1])
            whole[:, group] = rows
            found.append(whole.reshape(-1, *shape))
        return torch.cat(found).to(self.convolution.weight.dtype)


def group_matrices(g: Geometry, weight: Tensor) -> Tensor:
    """``[groups, out_dim / groups, in_dim / groups]``: the matrix of each group; differentiable by the weight."""
    kernel = g.kernel
    matrix = weight.reshape(g.groups, g.out_channels // g.groups, g.in_channels // g.groups, *kernel)
    for axis in range(g.ndim):
        matrix = torch.tensordot(matrix.movedim(3, -1), placements(g, axis).to(matrix), dims=1)
    d = g.ndim
    matrix = matrix.permute(0, 1, *range(3, 3 + 2 * d, 2), 2, *range(4, 4 + 2 * d, 2))
    sides = (g.out_dim // g.groups, g.in_dim // g.groups)
    return matrix.reshape(g.groups, *sides)


def windows(g: Geometry, axis: int) -> Tensor:
    """``[out, kernel]``, int64: the cell of the image under each tap of each window of an axis; -1 where that is a zero."""
    starts = g.stride[axis] * torch.arange(g.out_size[axis])
    taps = g.dilation[axis] * torch.arange(g.kernel[axis])
    return g.sources(axis)[starts[:, None] + taps]


def placements(g: Geometry, axis: int) -> Tensor:
    """``[kernel, out, in]``: whether a tap of a window reads a cell."""
    return windows(g, axis).T[:, :, None] == torch.arange(g.size[axis])
