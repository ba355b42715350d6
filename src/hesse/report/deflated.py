"""A symmetric matrix in two parts: its largest eigenvalues, and the rest, which random vectors see with less noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.linalg import Eigen
from hesse.operators import LinearOperator, LowRank

EXACT_DIM = 512  # up to here all eigenvalues are computed, and nothing is taken out


@dataclass(frozen=True)
class Deflated:
    """A matrix minus some of its eigenvalues.

    Attributes:
        values: ``[k]``, float64, on the CPU: the eigenvalues that were taken out.
        rest: the matrix without them; it has k zeros in their place.
        residual: how far they, and the eigenvalues of the rest, may be off.
    """

    values: Tensor
    rest: LinearOperator
    residual: float


def deflate(A: LinearOperator, pairs: Eigen) -> Deflated:
    """Take eigenpairs out; none up to dimension 512, and none of spaces of several dtypes or of 16 bits.

    Cost: nothing but arithmetic.
    """
    coarse = len(set(A.in_space.dtypes)) > 1 or A.in_space.dtype.itemsize < 4
    if A.shape[0] <= EXACT_DIM or coarse:
        return Deflated(torch.zeros(0, dtype=torch.float64), A, 0.0)
    vectors = A.in_space.ravel(pairs.vectors, 1).mT.contiguous()
    part = LowRank(vectors, pairs.values.to(vectors), in_space=A.in_space, out_space=A.in_space)
    return Deflated(pairs.values.double().cpu(), A - part, float(pairs.residuals.max()))
