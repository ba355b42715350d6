"""`pinv` of convolutions."""

from __future__ import annotations

from hesse.convolutions.operator import Convolution, TransposedConvolution
from hesse.convolutions.pseudo_inverse import ConvolutionPseudoInverse
from hesse.core.memory import Budget
from hesse.linalg.pinv_rules import pinv_rule
from hesse.operators import LinearOperator


@pinv_rule.register(Convolution)
def _pinv(A: Convolution, rtol: float | None, memory: Budget | None) -> ConvolutionPseudoInverse:
    return ConvolutionPseudoInverse(A, rtol=rtol, memory=memory)


@pinv_rule.register(TransposedConvolution)
def _pinv_transposed(A: TransposedConvolution, rtol: float | None, memory: Budget | None) -> LinearOperator:
    return ConvolutionPseudoInverse(A.convolution, rtol=rtol, memory=memory).T
