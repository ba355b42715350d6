"""The squared Frobenius norm of an operator: exact, or estimated without bias and with its standard error."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hesse.core import random
from hesse.core.batching import slices
from hesse.core.errors import NotConvergedError
from hesse.core.memory import Budget
from hesse.linalg.adaptive import Goal, Search
from hesse.linalg.estimate import Estimate
from hesse.linalg.hutchinson import sample_mean
from hesse.linalg.norm_rules import frobenius, norm_rule
from hesse.linalg.options import ON_FAILURE, check_choice, check_positive, conclude
from hesse.linalg.products import apply, beside, block_bytes, rows_at_once, sign_vectors, unit_vectors
from hesse.linalg.sketch import require_one_dtype
from hesse.linalg.xnorm import SquaredNormOf
from hesse.operators import LinearOperator
from hesse.operators.spread import asked_together

EXACT_PRODUCTS = 128  # up to this many products the exact answer is not worth estimating
METHODS = ("auto", "exact", "hutchinson", "deflated")


@asked_together
def squared_norm(
    A: LinearOperator,
    *,
    method: str = "auto",
    rtol: float = 0.05,
    generator: torch.Generator | None = None,
    max_products: int = 10_000,
    on_failure: str = "raise",
    memory: Budget | None = None,
) -> Estimate:
    """The squared Frobenius norm: the sum of squared entries, of squared singular values, the trace of ``A^H A``.

    Unlike the square of ``norm(A)`` its estimate is unbiased.

    Args:
        A: any operator, square or not.
        method: ``"exact"``; ``"hutchinson"``: the mean of ``|A v|^2`` over random signs; ``"deflated"``: a
            low-rank approximation exactly, what is left of it by random signs, all of them left out one by one
            (after Epperly, Tropp, Webber 2024), which also takes products with the adjoint and wins on decaying
            spectra; ``"auto"``: exact where the structure knows it or where that takes at most 128 products,
            else whichever needs the fewest products.
        rtol: relative standard error at which the estimate stops.
        generator: source of the random signs.
        max_products: products that an estimate may take.
        on_failure: ``"raise"``, or ``"return"`` what was reached, with a warning.
        memory: bytes, fraction or text; by default the budget in force.

    Returns:
        an `Estimate`; its standard error is 0 where the value is exact, and means what `trace` says.

    Raises:
        StructureError: no such method, or ``"deflated"`` for spaces with several dtypes or 16-bit leaves.
        NotConvergedError: the tolerance was not reached within `max_products`.

    Cost: exact: ``min(out, in)`` products; Hutchinson: about ``2 (|A^H A|_F / (rtol |A|_F^2))^2``, at worst
    ``2 / rtol^2``; deflated: twice the rank of a low-rank approximation that leaves an error of that size.
    """
    check_choice("squared_norm", "method", method, METHODS)
    check_choice("squared_norm", "on_failure", on_failure, ON_FAILURE)
    check_positive("squared_norm", rtol=rtol, max_products=max_products)
    result, converged = squared_frobenius(A, method, rtol, generator, max_products, memory)
    if not converged:
        conclude(failure("squared Frobenius norm", result), on_failure)
    return result


def failure(what: str, partial: Estimate) -> NotConvergedError:
    """The error of an estimate that missed its tolerance."""
    remedy = "raise max_products, memory or rtol, or use method='exact'"
    return NotConvergedError(f"The {what} was not estimated to its tolerance.", repr(partial), remedy, partial)


def squared_frobenius(
    A: LinearOperator,
    method: str,
    rtol: float,
    generator: torch.Generator | None,
    max_products: int,
    memory: Budget | None,
) -> tuple[Estimate, bool]:
    """`squared_norm` without checks, and whether it reached its tolerance."""
    cost = min(A.shape)
    if method in ("auto", "exact"):
        known = norm_rule(A, "fro")
        if known is not None:
            return Estimate(float(known) ** 2), True
    if method == "exact" or (method == "auto" and cost <= EXACT_PRODUCTS) or cost == 0:
        return _exact(A, memory, 0), True
    generator = generator or random.make_generator()
    if method == "hutchinson":
        return _hutchinson(A, rtol, generator, max_products, memory)
    if method == "deflated":
        require_one_dtype(A, "the Frobenius norm with method='deflated'")
    goal = Goal(rtol, 0.0, max_products, cost if cost <= max_products else math.inf)
    search = Search(A, SquaredNormOf(A), goal, generator, memory, "the estimate of the norm")
    found = search.auto() if method == "auto" else search.deflated()
    if found is not None and (found.converged or goal.exact_cost == math.inf):
        return Estimate(float(found.value), found.error, search.products), found.converged
    if goal.exact_cost == math.inf:
        return Estimate(math.nan, math.inf, search.products), False
    return _exact(A, memory, search.products), True


def _exact(A: LinearOperator, memory: Budget | None, spent: int) -> Estimate:
    if A.shape[0] < A.shape[1] and A.in_space.dtype == A.out_space.dtype:
        A = A.T
    dim, sizes = A.shape[1], [0.0]
    for part in slices(dim, rows_at_once(A, dim, "the Frobenius norm", memory=memory), "Frobenius norm"):
        with beside(A, block_bytes(A, part.stop - part.start), memory, kept=0):
            sizes.append(frobenius(apply(A, unit_vectors(A.in_space, part.start, part.stop))))
    return Estimate(math.hypot(*sizes) ** 2, 0.0, spent + dim)


def _hutchinson(
    A: LinearOperator, rtol: float, generator: torch.Generator, most: int, memory: Budget | None
) -> tuple[Estimate, bool]:
    squared_norm_of = SquaredNormOf(A)

    def draw(count: int) -> tuple[Tensor, float]:
        probes = sign_vectors(A.in_space, count, generator)
        with beside(A, block_bytes(A, count), memory, kept=0):
            products = apply(A, probes)
        return squared_norm_of.plain(probes, products)[:, 0], 0.0

    mean = sample_mean(
        draw,
        rtol=rtol,
        atol=0.0,
        most=most,
        exact_cost=math.inf,
        at_once=rows_at_once(A, most, "the estimate of the norm", memory=memory),
        label="norm (random signs)",
    )
    return Estimate(float(mean.value), float(mean.errors), mean.samples), mean.converged
