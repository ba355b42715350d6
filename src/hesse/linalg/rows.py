"""What iterative methods for a block of right-hand sides share: each row is checked against its true residual."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.core.errors import SymmetryError
from hesse.linalg.exponents import near_one, times
from hesse.linalg.options import rounding
from hesse.linalg.products import apply, row_norms
from hesse.linalg.symmetry import SymmetricProducts, inner
from hesse.operators import LinearOperator


class Rows:
    """Solutions of a block of right-hand sides, one a row, and what is known of their residuals.

    Rows that are done leave the block, and their vectors are given up.

    Args:
        A: an operator tagged Hermitian.
        b: ``[k, dim]``.
        rtol: tolerance of ``|b - A x| / |b|``.
        preconditioner: an approximation of the inverse of A, Hermitian positive definite.
        method: how errors name the method.

    Attributes:
        active: indices of the rows that go on.
        x, r: solutions of these, and residuals as the recursion has them, for right-hand sides of norm one.
        power: of two, by which A is multiplied so that squares stay in range, and x in the end. 0 before the first product.
        trouble: what stopped a row early.
    """

    def __init__(self, A: LinearOperator, b: Tensor, rtol: float, preconditioner: LinearOperator | None, method: str) -> None:
        self.A, self.b, self.rtol, self.preconditioner, self.method = A, b, rtol, preconditioner, method
        self._products = SymmetricProducts(A, method)
        self.power = 0.0
        self._power_of_preconditioner = 0.0
        self.flat = 4 * rounding(A)  # what is below this fraction of the norm cannot be told from zero
        size = row_norms(b)
        self.unit = torch.where(size > 0, size, torch.ones_like(size))[:, None]  # tiny b would underflow when squared
        self.active = torch.nonzero(size > 0)[:, 0]
        self.r = self._right(self.active)
        self.x, self._found = torch.zeros_like(self.r), torch.zeros_like(b)
        self.least, self.last_true = torch.ones_like(size), torch.full_like(size, torch.inf)
        self.iterations, self.norm, self.trouble = 0, 0.0, ""

    def _right(self, rows: Tensor) -> Tensor:
        """Right-hand sides of norm one."""
        whole = len(rows) == len(self.b)
        return self.b / self.unit if whole else self.b[rows].div_(self.unit[rows])

    def solution(self) -> Tensor:
        """The rows that are done, and of the others the x of the smallest residual so far; to be asked for once."""
        return self._found.mul_(self.unit).mul_(self.power or 1.0)

    def product(self, V: Tensor) -> Tensor:
        """``A v`` for each row v, times the power of two that the first of these products asks for."""
        products = self._products(V)
        self.power = self.power or near_one(products, V)
        return times(products, self.power)

    def remember(self) -> None:
        """Keep the active rows whose residuals are the smallest so far."""
        on = self.active
        seen = torch.linalg.vector_norm(self.r, dim=-1)
        self._keep(seen < self.least[on])
        self.least[on] = torch.minimum(seen, self.least[on])

    def _keep(self, chosen: Tensor) -> None:
        """Take the x of these active rows for what was found."""
        if bool(chosen.all()):
            self._found[self.active] = self.x
        else:
            self._found[self.active[chosen]] = self.x[chosen]

    def settle(self, is_flat: Tensor) -> tuple[Tensor, Tensor]:
        """Look at the true residuals of the active rows that claim to be done, and take out those that are done or stuck.

        Args:
            is_flat: which active rows have met a direction that A maps to nothing.

        Returns:
            which of the active rows stay, and which had their residual computed afresh (both as masks over the rows that were
            active before).
        """
        on = self.active
        claims = (torch.linalg.vector_norm(self.r, dim=-1) <= 0.9 * self.rtol) | is_flat
        stay = torch.ones_like(claims)
        if not bool(claims.any()):
            return stay, claims
        rows = on[claims]
        fresh = self._right(rows)
        fresh -= times(apply(self.A, self.x[claims]), self.power)
        true = torch.linalg.vector_norm(fresh, dim=-1)
        self.r[claims] = fresh
        del fresh
        done = true <= self.rtol
        is_stuck = ~done & (true > 0.5 * self.last_true[rows])
        is_singular = ~done & is_flat[claims]
        if bool(is_singular.any()):
            self.trouble = "A is singular or close to it, and b is not in its range"
        elif bool(is_stuck.any()):
            self.trouble = "rounding errors allow no smaller residual in this dtype"
        self.last_true[rows] = true
        claimed = torch.zeros_like(claims)
        claimed[claims] = done
        self._keep(claimed)
        stay[claims] = ~(done | is_singular | is_stuck)
        if not bool(stay.all()):
            self.active, self.x, self.r = on[stay], self.x[stay], self.r[stay]
        return stay, claims

    def precondition(self, r: Tensor) -> Tensor:
        """``M r`` for each row, times a power of two; r without a preconditioner, which may keep the copy that it is given."""
        if self.preconditioner is None:
            return r
        z = apply(self.preconditioner, r.clone())
        self._power_of_preconditioner = self._power_of_preconditioner or near_one(z, r)
        return times(z, self._power_of_preconditioner)

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
