"""`pinv` of convolutions."""

from __future__ import annotations

import math

from hesse.convolutions.inverse_norm import condition_of, inverse_norm
from hesse.convolutions.operator import Convolution, TransposedConvolution
from hesse.convolutions.pseudo_inverse import ConvolutionPseudoInverse, TransposedConvolutionPseudoInverse
from hesse.core.memory import Budget
from hesse.linalg.pinv_rules import pinv_rule
from hesse.operators import LinearOperator
from hesse.operators.pseudo_inverse import Kept, PseudoInverse


@pinv_rule.register(Convolution)
def _pinv(A: Convolution, rtol: float | None, memory: Budget | None) -> ConvolutionPseudoInverse:
    return ConvolutionPseudoInverse(A, rtol=rtol, memory=memory)


@pinv_rule.register(TransposedConvolution)
def _pinv_transposed(A: TransposedConvolution, rtol: float | None, memory: Budget | None) -> LinearOperator:
    return ConvolutionPseudoInverse(A.convolution, rtol=rtol, memory=memory).T


@pinv_rule.register(ConvolutionPseudoInverse)
def _pinv_of_inverse(P: ConvolutionPseudoInverse, rtol: float | None, memory: Budget | None) -> PseudoInverse | None:
    """The convolution itself, where nothing was dropped."""
    if rtol is not None or P.rank != min(P.shape):
        return None
    inverse = P.inverse
    kept = Kept(P.rank, 0, lambda: inverse_norm(inverse), lambda: condition_of(inverse), math.inf)
    return PseudoInverse(P.convolution, kept, P.method)


@pinv_rule.register(TransposedConvolutionPseudoInverse)
def _pinv_of_transposed_inverse(
    P: TransposedConvolutionPseudoInverse, rtol: float | None, memory: Budget | None
) -> LinearOperator | None:
    found = pinv_rule(P.pseudo_inverse, rtol, memory)
    return None if found is None else found.T
