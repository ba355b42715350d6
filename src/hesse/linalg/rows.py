"""What iterative methods for a block of right-hand sides share: each row is checked against its true residual."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.core.errors import SymmetryError
from hesse.linalg.options import rounding
from hesse.linalg.products import apply
from hesse.linalg.symmetry import SymmetricProducts, inner
from hesse.operators import LinearOperator


class Rows:
    """Solutions of a block of right-hand sides, one a row, and what is known of their residuals.

    Args:
        A: an operator tagged Hermitian.
        b: ``[k, dim]``, rows of norm one or zero.
        rtol: tolerance of ``|b - A x|``.
        preconditioner: an approximation of the inverse of A, Hermitian positive definite.
        method: how errors name the method.

    Attributes:
        x, r: solutions, and residuals as the recursion has them.
        active: indices of the rows that go on.
        best: the x of the smallest residual so far.
        trouble: what stopped a row early.
    """

    def __init__(self, A: LinearOperator, b: Tensor, rtol: float, preconditioner: LinearOperator | None, method: str) -> None:
        self.A, self.b, self.rtol, self.preconditioner, self.method = A, b, rtol, preconditioner, method
        self.product = SymmetricProducts(A, method)
        self.flat = 4 * rounding(A)  # what is below this fraction of the norm cannot be told from zero
        self.x, self.r = torch.zeros_like(b), b.clone()
        size = torch.linalg.vector_norm(b, dim=-1)
        self.active, self.done = torch.nonzero(size > 0)[:, 0], size == 0
        self.best, self.least = torch.zeros_like(b), size
        self.last_true = torch.full_like(size, torch.inf)
        self.iterations, self.norm, self.trouble = 0, 0.0, ""

    def solution(self) -> Tensor:
        """The rows that are done, and the best so far of the others."""
        return torch.where(self.done[:, None], self.x, self.best)

    def remember(self) -> None:
        """Keep the active rows whose residuals are the smallest so far."""
        on = self.active
        seen = torch.linalg.vector_norm(self.r[on], dim=-1)
        better = on[seen < self.least[on]]
        self.best[better] = self.x[better]
        self.least[on] = torch.minimum(seen, self.least[on])

    def settle(self, is_flat: Tensor) -> tuple[Tensor, Tensor]:
        """Look at the true residuals of the active rows that claim to be done, and take out those that are done or stuck.

        Args:
            is_flat: which active rows have met a direction that A maps to nothing.

        Returns:
            which of the active rows stay, and which had their residual computed afresh (both as masks over the rows that were
            active before).
        """
        on = self.active
        claims = (torch.linalg.vector_norm(self.r[on], dim=-1) <= 0.9 * self.rtol) | is_flat
        stay = torch.ones_like(claims)
        if not bool(claims.any()):
            return stay, claims
        rows = on[claims]
        self.r[rows] = self.b[rows] - apply(self.A, self.x[rows])
        true = torch.linalg.vector_norm(self.r[rows], dim=-1)
        done = true <= self.rtol
        is_stuck = ~done & (true > 0.5 * self.last_true[rows])
        is_singular = ~done & is_flat[claims]
        if bool(is_singular.any()):
            self.trouble = "A is singular or close to it, and b is not in its range"
        elif bool(is_stuck.any()):
            self.trouble = "rounding errors allow no smaller residual in this dtype"
        self.last_true[rows] = true
        self.done[rows] = done
        stay[claims] = ~(done | is_singular | is_stuck)
        self.active = on[stay]
        return stay, claims

    def precondition(self, r: Tensor) -> Tensor:
        """``M r`` for each row."""
        return r.clone() if self.preconditioner is None else apply(self.preconditioner, r)

    def positive(self, r: Tensor, z: Tensor) -> Tensor:
        """``r^H z`` of each row, where ``z = M r``.

        Raises:
            SymmetryError: it is negative.
        """
        product = inner(r, z)
        if self.preconditioner is not None and bool((product < 0).any()):
            raise SymmetryError(
                f"A preconditioner of {self.method} must be positive definite.",
                f"r^H M r = {float(product.min()):.2g} with {type(self.preconditioner).__name__}",
                "pass an approximation of the inverse of A that is Hermitian with positive eigenvalues",
            )
        return product
