"""The inverse behind a question."""

from __future__ import annotations

from torch import Tensor

from hesse.convolutions.cached import Inverses
from hesse.convolutions.inverse import Inverse
from hesse.convolutions.operator import Convolution
from hesse.core.memory import Budget
from hesse.operators import LinearOperator


def inverse_of(A: Convolution, *, rtol: float | None = None, memory: Budget | None = None) -> Inverse:
    """By whatever way suits A."""
    return Inverses(A.geometry, rtol=rtol, memory=memory).of(A.weight)


def ranked_inverse(A: Convolution, *, rtol: float | None = None, memory: Budget | None = None) -> Inverse:
    """By a way that counts singular values, which Krylov methods do not.

    Raises:
        MemoryBudgetError: the boundary system does not fit.
    """
    found = inverse_of(A, rtol=rtol, memory=memory)
    if found.method != "krylov":
        return found
    return Inverses(A.geometry, rtol=rtol, memory=memory, method="boundary").of(A.weight)


class InverseOperator(LinearOperator):
    """What an inverse applies, as an operator; without derivatives and certificates.

    Args:
        inverse: of A.
        transposed: the transpose of ``A⁺`` instead.
    """

    def __init__(self, inverse: Inverse, *, transposed: bool = False) -> None:
        A = inverse.convolution
        self.inverse, self.transposed = inverse, transposed
        self.in_space, self.out_space = (A.in_space, A.out_space) if transposed else (A.out_space, A.in_space)

    def mv(self, v: Tensor) -> Tensor:
        return self.mm(v[None])[0]

    def mm(self, V: Tensor) -> Tensor:
        if self.transposed:
            return self.inverse.apply(V.conj().resolve_conj(), adjoint=True).value.conj()
        return self.inverse.apply(V).value

    def transpose(self) -> LinearOperator:
        return InverseOperator(self.inverse, transposed=not self.transposed)
