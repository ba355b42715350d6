"""The diagonal of a square operator: exact, or estimated with its standard errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Tensor

from hesse.core import random
from hesse.core.memory import Budget, given_budget
from hesse.linalg.adaptive import Goal, Search
from hesse.linalg.diagonal_rules import column_squares_rule, diagonal_rule, exact_diagonal
from hesse.linalg.hutchinson import Mean, sample_mean
from hesse.linalg.options import check_choice, check_positive, require_square
from hesse.linalg.products import apply, beside, block_bytes, rows_at_once, sign_vectors
from hesse.linalg.sketch import require_one_dtype
from hesse.linalg.xdiag import DiagonalOf
from hesse.operators import LinearOperator
from hesse.operators.spread import asked_together

__all__ = ["DiagonalEstimate", "column_squares_rule", "diagonal", "diagonal_rule", "exact_diagonal"]

_METHODS = ("auto", "exact", "hutchinson", "xdiag")
_MEANS = 8  # vectors that means and spreads take


@dataclass(frozen=True)
class DiagonalEstimate:
    """A diagonal, how far each entry may be off, and what it cost.

    Attributes:
        value: ``[dim]``.
        standard_error: ``[dim]``, real, one standard deviation of each entry; zeros where the diagonal is exact.
            Entries share their probes, so that their errors are correlated.
        products: products with the operator, and with its adjoint, that were spent.
    """

    value: Tensor
    standard_error: Tensor
    products: int

    def __repr__(self) -> str:
        error, size = (float(torch.linalg.vector_norm(part.float())) for part in (self.standard_error, self.value.abs()))
        relative = "exact" if error == 0 else f"+- {error / size:.1g} of its norm" if size else f"+- {error:.1g}"
        return f"DiagonalEstimate([{len(self.value)}], {relative}, {self.products} products)"


@overload
def diagonal(
    A: LinearOperator,
    *,
    method: str = "auto",
    rtol: float | None = None,
    generator: torch.Generator | None = None,
    memory: Budget | None = None,
    full: Literal[False] = False,
) -> Tensor: ...


@overload
def diagonal(
    A: LinearOperator,
    *,
    method: str = "auto",
    rtol: float | None = None,
    generator: torch.Generator | None = None,
    memory: Budget | None = None,
    full: Literal[True],
) -> DiagonalEstimate: ...


@asked_together
def diagonal(
    A: LinearOperator,
    *,
    method: str = "auto",
    rtol: float | None = None,
    generator: torch.Generator | None = None,
    memory: Budget | None = None,
    full: bool = False,
) -> Tensor | DiagonalEstimate:
    """The diagonal ``[dim]`` of a square operator; ``A.in_space.unravel`` gives it names and shapes.

    Args:
        A: the operator.
        method: ``"exact"``; ``"hutchinson"``: the estimate of Bekas, Kokiopoulou and Saad (Applied Numerical
            Mathematics 57, 2007) with random signs, best where the off-diagonal part is flat; ``"xdiag"``
            (Epperly, Tropp, Webber 2024), best on decaying spectra, which also takes products with the adjoint;
            ``"auto"``: exact, unless an `rtol` is given and the operator has no structure that knows its
            diagonal; then whichever estimate needs fewer products, by the errors on probes that serve both.
        rtol: an estimate stops once its standard error, the 2-norm over the whole diagonal, is below this
            fraction of the 2-norm of the diagonal (0.05 by default). It never takes more products than the
            exact diagonal would: where it needs more, the exact one is computed.
        generator: source of the random signs.
        memory: bytes, fraction or text; by default the budget in force. XDiag keeps 6 vectors for each probe,
            in half of it; where more are needed, what that part leaves is estimated by fresh signs, which are not kept.
        full: also give standard errors and price.

    Returns:
        the diagonal, or with `full` a `DiagonalEstimate`.

    Raises:
        StructureError: the operator is not square, there is no such method, or XDiag was asked of spaces with
            several dtypes or 16-bit leaves.

    Cost: nothing but arithmetic where the structure knows it; exact: dim products, in blocks.
    """
    check_choice("diagonal", "method", method, _METHODS)
    require_square(A, "diagonal", "take the diagonal of A.T @ A or of A @ A.T, or hesse.dense(A)")
    check_positive("diagonal", rtol=rtol)
    known = diagonal_rule(A) if method in ("auto", "exact") else None
    if known is None and (method in ("hutchinson", "xdiag") or (method == "auto" and rtol is not None)):
        generator = generator or random.make_generator()
        found = _estimate(A, method, 0.05 if rtol is None else rtol, generator, memory)
    else:
        value = exact_diagonal(A, memory) if known is None else known
        found = DiagonalEstimate(value, torch.zeros_like(value.abs()), A.shape[0] if known is None else 0)
    return found if full else found.value


def _estimate(
    A: LinearOperator, method: str, rtol: float, generator: torch.Generator, memory: Budget | None
) -> DiagonalEstimate:
    """The estimate, or the exact diagonal where that is cheaper."""
    dim, dtype = A.shape[0], A.out_space.dtype
    if method == "hutchinson":
        mean = _hutchinson(A, rtol, generator, memory)
        value, errors, spent = (mean.value, mean.errors, mean.samples) if mean.converged else (None, None, mean.samples)
    else:
        if method == "xdiag":
            require_one_dtype(A, "diagonal with method='xdiag'")
        search = Search(A, DiagonalOf(A), Goal(rtol, 0.0, max(dim, 1), dim), generator, memory, "the estimate of the diagonal")
        found = search.auto() if method == "auto" else search.deflated()
        value, errors = (found.value, found.errors) if found is not None and found.converged else (None, None)
        spent = search.products
    if value is None or errors is None:
        exact = exact_diagonal(A, memory)
        return DiagonalEstimate(exact, torch.zeros_like(exact.abs()), spent + dim)
    return DiagonalEstimate(value.to(dtype), errors.to(dtype.to_real() if dtype.is_complex else dtype), spent)


def _hutchinson(A: LinearOperator, rtol: float, generator: torch.Generator, memory: Budget | None) -> Mean:
    diagonal_of, dim = DiagonalOf(A), A.shape[0]
    means = _MEANS * dim * A.in_space.dtype.itemsize if given_budget(memory, A.in_space.device) else 0

    def draw(count: int) -> tuple[Tensor, float]:
        probes = sign_vectors(A.in_space, count, generator)
        with beside(A, block_bytes(A, count), memory, kept=0):
            products = apply(A, probes)
        return diagonal_of.plain(probes, products), 0.0

    return sample_mean(
        draw,
        rtol=rtol,
        atol=0.0,
        most=max(dim - 1, 0),
        exact_cost=dim,
        at_once=rows_at_once(A, max(dim, 1), "the estimate of the diagonal", memory=memory, kept=means),
        label="diagonal (random signs)",
    )
