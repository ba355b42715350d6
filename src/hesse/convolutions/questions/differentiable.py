"""Solutions with convolutions that are differentiated: by their pseudo-inverses."""

from __future__ import annotations

from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from hesse.convolutions.operator import Convolution, TransposedConvolution
from hesse.convolutions.pseudo_inverse import ConvolutionPseudoInverse
from hesse.linalg.differentiable_rules import differentiable_rule, has_derivatives


@differentiable_rule.register(Convolution)
def _forward(A: Convolution, b: Tensor, square: bool) -> Tensor | None:
    if not has_derivatives(A.weight, b):
        return None
    P = ConvolutionPseudoInverse(A)
    return None if square and _is_singular(A, P) else P @ b


@differentiable_rule.register(TransposedConvolution)
def _transposed(A: TransposedConvolution, b: Tensor, square: bool) -> Tensor | None:
    if not has_derivatives(A.convolution.weight, b):
        return None
    P = ConvolutionPseudoInverse(A.convolution)
    return None if square and _is_singular(A.convolution, P) else P.T @ b


def _is_singular(A: Convolution, P: ConvolutionPseudoInverse) -> bool:
    """Whether singular values were dropped; within a transform by the weight, where nobody can ask, its solutions say so."""
    return not is_functorch_wrapped_tensor(A.weight) and bool(P.truncated)
