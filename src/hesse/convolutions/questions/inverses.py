"""The inverse behind a question, and the norm of that inverse."""

from __future__ import annotations

from torch import Tensor

from hesse.convolutions.cached import Inverses
from hesse.convolutions.certificate import COUNTED
from hesse.convolutions.inverse import Inverse
from hesse.convolutions.operator import Convolution
from hesse.core import random
from hesse.core.memory import Budget
from hesse.linalg.svd_krylov import SingularSearch
from hesse.operators import LinearOperator

_SURE = 1e-3  # residual at which the norm of an inverse has been found by iteration
_PRODUCTS = 400


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


def inverse_norm(inverse: Inverse) -> float:
    """``|A⁺|``: one over the smallest singular value that is kept.

    Cost: nothing where all singular values are known; else some tens of solutions.
    """
    norm = inverse.norm()
    if not norm:
        return 0.0
    if inverse.method in COUNTED:
        return inverse.condition() / norm
    search = SingularSearch(InverseOperator(inverse), 1, "largest", _SURE, random.make_generator())
    return (1 + _SURE) * float(search.run(_PRODUCTS).values.max())


def condition_of(inverse: Inverse) -> float:
    """The largest singular value over the smallest that is kept."""
    return inverse.condition() if inverse.method in COUNTED else inverse.norm() * inverse_norm(inverse)
