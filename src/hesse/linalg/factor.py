"""Explicit factorizations: made once, solved with many times, saved and loaded like any operator."""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import cached_property, singledispatch
from typing import Any, final

from torch import Tensor

from hesse.core.errors import MemoryBudgetError, UnsupportedError
from hesse.core.memory import Budget, current_budget, format_bytes
from hesse.core.tree import Tree
from hesse.linalg.answer import Answer, conjugated
from hesse.linalg.dense import dense
from hesse.linalg.lstsq import lstsq
from hesse.linalg.options import require_square
from hesse.linalg.pinv import check_fields
from hesse.linalg.pinv_general import matrix_bytes
from hesse.linalg.solution import norm_from_below
from hesse.linalg.solve import solve
from hesse.operators import Dense, LinearOperator
from hesse.operators.spread import asked_together

_COPIES, _BY_SVD = 5, 8  # of a matrix, while it is factored


class Factorization(LinearOperator):
    """An operator A in a form that solves with it at once; made by `factor`.

    It is A itself: ``F @ v``, ``F.T`` and every question work, and `hesse.solve`, `hesse.lstsq` and `hesse.save` use the
    factors. A subclass writes `answer` and `condition`, `log_abs_det` where A is square, and a storing rule.

    Args:
        operator: A as it was factored, by which solutions are checked.
        method: the name of the way, which `Solution.method` repeats.

    Attributes:
        truncated: how many of the ``min(out, in)`` singular values count as zero.
    """

    truncated: int = 0

    def __init__(self, operator: LinearOperator, method: str) -> None:
        self.operator, self.method = operator, method
        self.in_space, self.out_space, self.tags = operator.in_space, operator.out_space, operator.tags
        if operator.mass != 1.0:
            self.mass = operator.mass

    @abstractmethod
    def answer(self, B: Tensor, *, adjoint: bool = False) -> Answer:
        """Unchecked rows ``A^-1 b`` for rows ``[k, out]``, where A is not square or singular ``A^+ b``.

        Args:
            B: right-hand sides ``[k, out]`` in the working dtype; with `adjoint` ``[k, in]``.
            adjoint: of the adjoint of A.
        """

    @property
    @abstractmethod
    def condition(self) -> float | None:
        """An estimate of the condition number (of what was not cut off), found at the first access where it is costly."""

    def damped(self, B: Tensor, damping: float) -> Answer | None:
        """Rows that minimize ``|b - A x|^2 + damping |x|^2``, where the factors tell them."""
        return None

    def log_abs_det(self) -> float:
        """``log |det A|`` of a square A that is not singular.

        Raises:
            UnsupportedError: the factors do not tell it.
        """
        found = f"{self!r}"
        raise UnsupportedError("This factorization has no log-determinant.", found, "use factor(Dense(hesse.dense(A)))")

    @cached_property
    def norm_bound(self) -> float:
        """A close lower bound of the 2-norm of A, which the certificates of least squares need."""
        return norm_from_below(self.operator)

    def mv(self, v: Tree) -> Tree:
        return self.operator.mv(v)

    def mm(self, V: Tree) -> Tree:
        return self.operator.mm(V)

    def transpose(self) -> LinearOperator:
        return TransposedFactorization(self)

    @final
    def solve(self, b: Tree, *, rtol: float | None = None, on_failure: str = "raise", full: bool = False) -> Any:
        """The x with ``A x = b`` for a square A, checked with A and refined as in `hesse.solve`.

        Args:
            b: a tree of `out_space`; batch axes in front of every leaf are allowed.
            rtol: largest ``|b - A x| / |b|``; by default that of `hesse.solve`.
            on_failure: ``"raise"``, or ``"return"`` what was reached, with a warning.
            full: return a `Solution` instead of its value.

        Raises:
            StructureError: A is not square, or b not in its space.
            NotConvergedError: the true residual is too large, or A is singular; carries the `Solution` reached.
        """
        return solve(self, b, rtol=rtol, on_failure=on_failure, full=full)

    @final
    def lstsq(self, b: Tree, *, rtol: float | None = None, on_failure: str = "raise", full: bool = False) -> Any:
        """``A^+ b``: the shortest x that minimizes ``|b - A x|``, certified with A as in `hesse.lstsq`.

        Args:
            b: a tree of `out_space`; batch axes in front of every leaf are allowed.
            rtol: tolerance of the certificate; by default that of `hesse.lstsq`.
            on_failure: ``"raise"``, or ``"return"`` what was reached, with a warning.
            full: return a `Solution` instead of its value.

        Raises:
            StructureError: b is not in the space.
            NotConvergedError: the certificate does not hold; carries the `Solution` reached.
        """
        return lstsq(self, b, rtol=rtol, on_failure=on_failure, full=full)

    @final
    def logdet(self) -> float:
        """``log |det A|`` of a square A; minus infinity where it is singular.

        Raises:
            StructureError: A is not square. UnsupportedError: the factors do not tell it.
        """
        require_square(self, "logdet", "take half of the logdet of A.H @ A, or A @ A.H, for the volume that A spans")
        return -math.inf if self.truncated else self.log_abs_det()

    def __repr__(self) -> str:
        rank = f", rank {min(self.shape) - self.truncated}" if self.truncated else ""
        return f"{type(self).__name__}({self.shape[0]} x {self.shape[1]}{rank}, by {self.method})"


class TransposedFactorization(Factorization):
    """The transpose of a factored operator, by the same factors.

    Args:
        factors: of the operator.
    """

    def __init__(self, factors: Factorization) -> None:
        super().__init__(factors.operator.T, factors.method)
        self.factors, self.truncated = factors, factors.truncated

    @property
    def condition(self) -> float | None:
        """That of the operator."""
        return self.factors.condition

    def answer(self, B: Tensor, *, adjoint: bool = False) -> Answer:
        """By ``A^-T b = conj(A^-H conj(b))``."""
        found = self.factors.answer(B.conj().resolve_conj(), adjoint=not adjoint)
        return conjugated(found)

    def log_abs_det(self) -> float:
        """That of the operator."""
        return self.factors.log_abs_det()

    def transpose(self) -> LinearOperator:
        return self.factors


@singledispatch
def factor_rule(A: LinearOperator, memory: Budget | None) -> Factorization | None:
    """The open rule behind `factor`: a factorization by the structure of `A`, or None.

    Args:
        A: the operator; register more with ``@factor_rule.register(MyOperator)``.
        memory: budget for matrices.
    """
    return None


@asked_together
def factor(A: LinearOperator, *, memory: Budget | None = None) -> Factorization:
    """A factorization of an operator, to solve with many right-hand sides that come one after another, and to keep.

    ``F = factor(A)``; then ``F.solve(b)``, ``F.lstsq(b)``, ``F.logdet()``, ``F.condition``, ``hesse.save(F, path)``.

    Args:
        A: any operator, between real or between complex spaces, square or not.
        memory: budget for matrices: bytes, fraction or text; by default the one in force.

    Returns:
        a `Factorization`, an operator equal to `A`: by the structure (diagonal; sparse: SuperLU; block-diagonal; Kronecker;
        scaled); else of the matrix: its Cholesky factor where `A` is tagged PSD and it exists, LU with partial pivoting where
        it is square and not singular to working precision, else its singular values, of which those below
        ``eps max(out, in)`` times the largest count as zero. A snapshot: factor again when the entries of `A` have changed.

    Raises:
        StructureError, LeafError: spaces that are partly real and partly complex, or integers.
        NonFiniteError: an entry is NaN or infinite.
        MemoryBudgetError: the matrix and its factors do not fit; says the size.

    Cost: dim products in blocks where no structure knows the matrix, and the factors: ``2/3 dim^3`` operations for LU. A
    solution costs ``2 dim^2``, and a product for its check. Saved files hold the factors, of sparse operators the entries:
    SuperLU's factors are made again at loading.
    """
    check_fields(A, "factor")
    if isinstance(A, Factorization):
        return A
    known = factor_rule(A, memory)
    if known is not None:
        return known
    copies = _COPIES if A.shape[0] == A.shape[1] else _BY_SVD
    needed, budget = matrix_bytes(A, copies), current_budget(memory, A.in_space.device)
    if needed > budget:
        raise MemoryBudgetError(
            f"{type(A).__name__} of shape {A.shape} is factored by its matrix.",
            f"a budget of {format_bytes(budget)}, where at least {format_bytes(needed)} is needed",
            f"pass memory={needed} or more, or use hesse.solve or hesse.lstsq, which have iterative methods",
            needed,
        )
    found = factor_rule(Dense(dense(A, memory=memory).detach(), A.in_space, A.out_space, A.tags), memory)
    assert found is not None  # the rule of Dense takes every matrix
    if A.mass != 1.0:
        found.mass = A.mass
    return found
