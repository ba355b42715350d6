"""`factor` of convolutions: what inverts them, kept."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import Tensor

from hesse.convolutions.inverse import Inverse
from hesse.convolutions.inverse_norm import condition_of
from hesse.convolutions.ladder import Laddered
from hesse.convolutions.operator import Convolution, TransposedConvolution
from hesse.convolutions.questions.determinant import log_determinant
from hesse.convolutions.questions.inverses import inverse_of
from hesse.convolutions.questions.solutions import answer
from hesse.convolutions.stored_inverse import restored, stored
from hesse.core.memory import Budget
from hesse.linalg import Answer
from hesse.linalg.factor import Factorization, factor_rule
from hesse.operators.storage import storable


class ConvolutionFactorization(Factorization):
    """A convolution, as its weight was, and what applies its pseudo-inverse.

    Args:
        inverse: of the convolution.
    """

    def __init__(self, inverse: Inverse) -> None:
        super().__init__(inverse.convolution, inverse.method)
        self.inverse, self.truncated = inverse, inverse.truncated

    @classmethod
    def from_stored(cls, operator: Convolution, inverse: Any) -> ConvolutionFactorization:
        """By the factors that were saved; where a method has none to save, it begins again."""
        if inverse is None:
            return cls(inverse_of(operator))
        made = restored(inverse, operator)
        return cls(Laddered(operator, [(made.method, lambda: made)], None))

    @cached_property
    def _condition(self) -> float:
        return condition_of(self.inverse)

    @property
    def condition(self) -> float:
        """The largest singular value over the smallest that is kept; found at the first access."""
        return self._condition

    @cached_property
    def norm_bound(self) -> float:
        """The 2-norm."""
        return self.inverse.norm()

    def answer(self, B: Tensor, *, adjoint: bool = False) -> Answer:
        """Rows ``A⁺ b``, or ``A⁺ᴴ b``."""
        return answer(self.inverse, B, adjoint=adjoint)

    def log_abs_det(self) -> float:
        """See `log_determinant`."""
        return float(log_determinant(self.inverse.convolution).logabs)


@factor_rule.register(Convolution)
def _factor(A: Convolution, memory: Budget | None) -> Factorization:
    return ConvolutionFactorization(inverse_of(A, memory=memory))


@factor_rule.register(TransposedConvolution)
def _factor_transposed(A: TransposedConvolution, memory: Budget | None) -> Any:
    return ConvolutionFactorization(inverse_of(A.convolution, memory=memory)).T


@storable.register(ConvolutionFactorization)
def _stored(F: ConvolutionFactorization) -> dict[str, Any]:
    inverse = F.inverse.current if isinstance(F.inverse, Laddered) else F.inverse
    return {"operator": F.operator, "inverse": stored(inverse)}
