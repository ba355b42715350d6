"""Condition numbers and extreme singular values of convolutions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hesse.convolutions.inverse import Inverse
from hesse.convolutions.inverse_norm import condition_of
from hesse.convolutions.operator import Convolution, TransposedConvolution
from hesse.convolutions.questions.inverses import InverseOperator, ranked_inverse
from hesse.convolutions.questions.rank import null_rows
from hesse.core import random
from hesse.linalg import condition_rule, svd_rule
from hesse.linalg.svd_krylov import SingularSearch
from hesse.linalg.svd_rules import Triplets

_DENSE_DIM = 512  # up to this smaller side the general way, by the matrix, serves
_EXACT = 1e-7  # residual of triplets, as a fraction of the norm of what they are found by
_PRODUCTS = 4000


@condition_rule.register(Convolution)
def _condition(A: Convolution) -> float | None:
    """Infinite if a singular value is zero to working precision."""
    if min(A.shape) <= _DENSE_DIM:
        return None
    inverse = ranked_inverse(A)
    return math.inf if inverse.truncated else condition_of(inverse)


@condition_rule.register(TransposedConvolution)
def _condition_transposed(A: TransposedConvolution) -> float | None:
    return condition_rule(A.convolution)


@svd_rule.register(Convolution)
def _triplets(A: Convolution, k: int, which: str) -> Triplets | None:
    """The smallest: the largest of the pseudo-inverse, by Lanczos, after those that are zero.

    The largest one alone is found here, too: `svd` asks for it to judge the smallest by.
    """
    if min(A.shape) <= max(_DENSE_DIM, 4 * k):
        return None
    if which == "largest":
        search = SingularSearch(A, k, which, _precision(A), random.make_generator())
        return search.run(_PRODUCTS) if k == 1 else None
    inverse = ranked_inverse(A)
    zeros = _zeros(inverse, min(inverse.truncated, k))
    if inverse.truncated >= k:
        return zeros
    search = SingularSearch(InverseOperator(inverse), k - inverse.truncated, "largest", _precision(A), random.make_generator())
    found = search.run(_PRODUCTS)
    return Triplets(
        torch.cat([zeros.U, found.V]), torch.cat([zeros.values, found.values.reciprocal()]), torch.cat([zeros.V, found.U])
    )


@svd_rule.register(TransposedConvolution)
def _triplets_transposed(A: TransposedConvolution, k: int, which: str) -> Triplets | None:
    """``Aᵀ conj(u) = s conj(v)``."""
    found = svd_rule(A.convolution, k, which)
    return None if found is None else Triplets(_conj(found.V), found.values, _conj(found.U))


def _conj(V: Tensor) -> Tensor:
    return V.conj().resolve_conj()


def _precision(A: Convolution) -> float:
    return max(_EXACT, 8 * torch.finfo(A.weight.dtype).eps)


def _zeros(inverse: Inverse, count: int) -> Triplets:
    weight = inverse.convolution.weight
    values = torch.zeros(count, dtype=weight.real.dtype if weight.is_complex() else weight.dtype, device=weight.device)
    U, V = (null_rows(inverse, count, adjoint=adjoint) for adjoint in (True, False))
    return Triplets(U, values, V)
