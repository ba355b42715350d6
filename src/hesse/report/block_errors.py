"""How far approximations of a block are from the block: relative Frobenius errors, exact or from shared random probes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.core.batching import slices
from hesse.linalg.products import apply, rows_at_once, sign_vectors, unit_vectors
from hesse.operators import LinearOperator

_EXACT_DIM = 48  # up to here every column is taken
_PROBES = 32


@dataclass(frozen=True)
class BlockSquares:
    """Squared Frobenius norms of a block and of its distances to some approximations.

    Attributes:
        samples: ``[n, 1 + approximations]``, float64: ``|B v|²``, and ``|B v - K v|²`` for each approximation K, whose sums
            (exact: over unit vectors) or means (over random signs) are the squared norms.
        is_exact: whether the probes were all unit vectors.
    """

    samples: Tensor
    is_exact: bool

    @property
    def total(self) -> Tensor:
        """``[1 + approximations]``: the squared norms."""
        return self.samples.sum(0) if self.is_exact else self.samples.mean(0)

    @property
    def variances(self) -> Tensor:
        """``[1 + approximations, 1 + approximations]``: the covariance of `total`."""
        width = self.samples.shape[1]
        return torch.zeros(width, width, dtype=torch.float64) if self.is_exact else self.samples.T.cov() / len(self.samples)


def block_squares(B: LinearOperator, approximations: Sequence[LinearOperator], generator: torch.Generator) -> BlockSquares:
    """Apply a block and its approximations to the same vectors, so that most of the randomness cancels in their ratio.

    The mean of ``|A v|²`` over random signs v is the squared Frobenius norm of A (Hutchinson 1989, for ``Aᵀ A``).

    Cost: up to dimension 48 as many products with the block as dimensions; beyond, 32.
    """
    dim = B.shape[1]
    is_exact = dim <= _EXACT_DIM
    count = dim if is_exact else _PROBES
    parts = []
    for part in slices(count, rows_at_once(B, count, "the error of a block")):
        rows = (part.start, part.stop)
        V = unit_vectors(B.in_space, *rows) if is_exact else sign_vectors(B.in_space, rows[1] - rows[0], generator)
        product = apply(B, V).double()
        distances = [product - apply(K, V).double() for K in approximations]
        parts.append(torch.stack([difference.square().sum(-1) for difference in (product, *distances)], -1).cpu())
    return BlockSquares(torch.cat(parts), is_exact)


def relative_error(total: Tensor, variances: Tensor, which: int) -> tuple[float, float] | None:
    """The relative Frobenius error of an approximation, and its standard error by the delta method.

    Args:
        total, variances: sums of those of `BlockSquares` over some blocks.
        which: 1 for the first approximation.

    Returns:
        None for a block that is zero.
    """
    norm, distance = float(total[0]), float(total[which])
    if norm <= 0:
        return None
    ratio = distance / norm
    spread = variances[which, which] - 2 * ratio * variances[0, which] + ratio**2 * variances[0, 0]
    value = math.sqrt(ratio)
    return value, (math.sqrt(max(float(spread), 0.0)) / norm / (2 * value) if value else 0.0)
