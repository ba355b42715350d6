"""The determinant of a square convolution, without its matrix where the boundary method or the torus knows better."""

from __future__ import annotations

import torch

from hesse.convolutions import circular, determinant
from hesse.convolutions.boundary import boundary_size, require
from hesse.convolutions.operator import Convolution, TransposedConvolution
from hesse.convolutions.small import group_matrices
from hesse.convolutions.square import SquareSystem
from hesse.convolutions.truncation import factor_dtype
from hesse.core.memory import Budget, chunk_size, current_budget
from hesse.linalg.options import require_square
from hesse.linalg.slogdet_rules import SignLog, slogdet_rule

_DENSE_DIM = 300  # of a group: below, the matrix is as cheap as anything
_COPIES = 4


def log_determinant(A: Convolution | TransposedConvolution, *, memory: Budget | None = None) -> SignLog:
    """The sign and ``log |det A|`` of a square convolution; differentiable by its weight, twice and more.

    The matrix is that of `hesse.dense`: its rows and columns in the order of the flat images. In double precision.

    Args:
        A: a square convolution, or its transpose.
        memory: budget for matrices: bytes, fraction or text; by default the one in force.

    Raises:
        StructureError: A is not square.
        MemoryBudgetError: the matrix is needed and does not fit.

    Cost: on a torus an LU decomposition for each frequency; by the boundary method two more, of the size of the
    boundary; else (small ones, singular ones, and determinants that are tiny beside that of the torus) one of the matrix of
    each group. Masked kernels without derivatives: that of one tap.
    """
    if isinstance(A, TransposedConvolution):
        return log_determinant(A.convolution, memory=memory)
    require_square(A, "slogdet", "take half of slogdet(A.H @ A) or slogdet(A @ A.H) for the volume that A spans")
    g, weight = A.geometry, A.weight
    weight = weight.to(factor_dtype(weight.dtype))
    side = g.in_dim // g.groups
    if g.is_circular:
        return SignLog(*circular.log_determinant(Convolution(weight, g)))
    B = Convolution(weight, g)
    found = determinant.triangular(B)
    if found is None and side > _DENSE_DIM and SquareSystem.fits(A):
        require(B, boundary_size(B), current_budget(memory, weight.device))
        found = determinant.log_determinant(B)
    if found is not None:
        return SignLog(*found)
    needed = _COPIES * g.groups * side**2 * weight.element_size()
    chunk_size(1, needed, 0, current_budget(memory, weight.device), f"the matrix of {A}")
    sign, logabs = torch.linalg.slogdet(group_matrices(g, weight))
    return SignLog(sign.prod(), logabs.sum())


@slogdet_rule.register(Convolution)
@slogdet_rule.register(TransposedConvolution)
def _slogdet(A: Convolution | TransposedConvolution) -> SignLog:
    return log_determinant(A)
