"""Rank and null space of convolutions."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.convolutions.inverse import Inverse
from hesse.convolutions.operator import Convolution, TransposedConvolution
from hesse.convolutions.products import convolve, convolve_transposed
from hesse.convolutions.questions.inverses import ranked_inverse
from hesse.core import random
from hesse.core.memory import Budget, chunk_size, current_budget
from hesse.linalg.null_space_rules import null_space_rule
from hesse.linalg.rank_rules import Rank, rank_rule

_COPIES = 6
_DENSE_DIM = 1000  # up to this larger side the general way, by the matrix, finds all null vectors sooner


@rank_rule.register(Convolution)
def _rank(A: Convolution, rtol: float | None, memory: Budget | None) -> Rank:
    """Those that the inverse keeps."""
    inverse = ranked_inverse(A, rtol=rtol, memory=memory)
    return Rank(min(A.shape) - inverse.truncated, inverse.gap)


@rank_rule.register(TransposedConvolution)
def _rank_transposed(A: TransposedConvolution, rtol: float | None, memory: Budget | None) -> int | None:
    return rank_rule(A.convolution, rtol, memory)


@null_space_rule.register(Convolution)
def _null_space(A: Convolution, rtol: float | None, memory: Budget | None) -> Tensor | None:
    """Random images without what the inverse sees of them, as many as are missing in the rank."""
    if max(A.shape) <= _DENSE_DIM:
        return None
    inverse = ranked_inverse(A, rtol=rtol, memory=memory)
    return null_rows(inverse, A.shape[1] - min(A.shape) + inverse.truncated, memory=memory)


@null_space_rule.register(TransposedConvolution)
def _null_space_transposed(A: TransposedConvolution, rtol: float | None, memory: Budget | None) -> Tensor | None:
    """``Aᵀ conj(u) = conj(Aᴴ u)``."""
    if max(A.shape) <= _DENSE_DIM:
        return None
    inverse = ranked_inverse(A.convolution, rtol=rtol, memory=memory)
    return null_rows(inverse, A.shape[1] - min(A.shape) + inverse.truncated, adjoint=True, memory=memory).conj().resolve_conj()


def null_rows(inverse: Inverse, count: int, *, adjoint: bool = False, memory: Budget | None = None) -> Tensor:
    """``[count, in]``: orthonormal rows that A maps to zero; with `adjoint` ``[count, out]``, which its adjoint does.

    Random images less their part in the range of the adjoint, ``x - A⁺ A x``, made orthonormal; twice, which leaves rounding.

    Args:
        inverse: of A.
        count: at most the dimension of the null space.
        adjoint: of the adjoint of A.
        memory: the budget; by default the one in force.

    Raises:
        MemoryBudgetError: so many do not fit.

    Cost: twice `count` solutions.
    """
    A = inverse.convolution
    g, weight = A.geometry, A.weight
    shape = g.out_shape if adjoint else g.in_shape
    dim = g.out_dim if adjoint else g.in_dim
    if count == 0:
        return weight.new_zeros(0, dim)
    needed = _COPIES * count * dim * weight.element_size()
    chunk_size(1, needed, 0, current_budget(memory, weight.device), f"{count} null vectors of {A}")
    X = random.normal((count, *shape), weight.dtype, weight.device, random.make_generator())
    for _ in range(2):
        image = convolve_transposed(g, weight.conj(), X) if adjoint else convolve(g, weight, X)
        X = X - inverse.apply(image, adjoint=adjoint).value
        X = torch.linalg.qr(X.flatten(1).mT).Q.mT.reshape(count, *shape)
    return X.flatten(1)
