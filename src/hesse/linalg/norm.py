"""Norms of an operator: Frobenius and spectral."""

from __future__ import annotations

import math

import torch

from hesse.core import random
from hesse.core.errors import NotConvergedError
from hesse.core.memory import Budget
from hesse.linalg.dense import matrix_for
from hesse.linalg.eigen import eigsh
from hesse.linalg.estimate import Estimate
from hesse.linalg.norm_rules import Order, norm_rule, spectral
from hesse.linalg.options import ON_FAILURE, check_choice, check_positive, conclude, is_hermitian
from hesse.linalg.squared_norm import EXACT_PRODUCTS, METHODS, failure, squared_frobenius
from hesse.operators import Congruence, LinearOperator
from hesse.operators.spread import asked_together

_METHODS = {"fro": METHODS, 2: ("auto", "exact", "lanczos")}


@asked_together
def norm(
    A: LinearOperator,
    *,
    ord: Order = "fro",
    method: str = "auto",
    rtol: float | None = None,
    generator: torch.Generator | None = None,
    max_products: int = 10_000,
    on_failure: str = "raise",
    memory: Budget | None = None,
) -> Estimate:
    """The Frobenius norm (``ord="fro"``) or the spectral norm, the largest singular value (``ord=2``).

    Args:
        A: any operator, square or not.
        ord: which norm.
        method: ``"exact"``; for the Frobenius norm ``"hutchinson"`` and ``"deflated"``, the roots of what
            `squared_norm` estimates; for the spectral norm ``"lanczos"``, on `A` if it is Hermitian, else on ``A^H A`` or ``A
            A^H``, whichever is smaller; ``"auto"``: exact where the structure knows it or where that takes at
            most 128 products, else for the Frobenius norm whichever estimate needs fewer products.
        rtol: relative standard error of the estimate (0.05 by default); for Lanczos the relative residual of
            the eigenvalue (see `eigsh`).
        generator: source of the random vectors.
        max_products: products that an estimate may take.
        on_failure: ``"raise"``, or ``"return"`` what was reached, with a warning.
        memory: bytes, fraction or text; by default the budget in force.

    Returns:
        an `Estimate`. For Lanczos its `standard_error` bounds the distance to a singular value, by the
        residual.

    Raises:
        StructureError: no such norm or method.
        NotConvergedError: the tolerance was not reached within `max_products`.

    Cost: exact: ``min(out, in)`` products; estimates of the Frobenius norm: at most about ``1 / (2 rtol^2)``;
        Lanczos: tens.
    """
    check_choice("norm", "ord", ord, tuple(_METHODS))
    check_choice(f"norm with ord={ord!r}", "method", method, _METHODS[ord])
    check_choice("norm", "on_failure", on_failure, ON_FAILURE)
    check_positive("norm", rtol=rtol, max_products=max_products)
    if ord == "fro":
        return _frobenius(A, method, rtol or 0.05, generator, max_products, on_failure, memory)
    if method in ("auto", "exact"):
        known = norm_rule(A, ord)
        if known is not None:
            return Estimate(float(known))
        if method == "exact" or min(A.shape) <= EXACT_PRODUCTS:
            return _exact_spectral(A, memory)
    return _lanczos(A, rtol, generator or random.make_generator(), max_products, on_failure)


def _frobenius(
    A: LinearOperator,
    method: str,
    rtol: float,
    generator: torch.Generator | None,
    max_products: int,
    on_failure: str,
    memory: Budget | None,
) -> Estimate:
    known = norm_rule(A, "fro") if method in ("auto", "exact") else None
    if known is not None:
        return Estimate(float(known))
    squared, converged = squared_frobenius(A, method, 2 * rtol, generator, max_products, memory)
    value = math.sqrt(float(squared))
    error = squared.standard_error / (2 * value) if value else 0.0
    result = Estimate(value, error, squared.products)
    if not converged:
        conclude(failure("Frobenius norm", result), on_failure)
    return result


def _exact_spectral(A: LinearOperator, memory: Budget | None) -> Estimate:
    return Estimate(spectral(matrix_for(A, "the singular values", 3, memory)), 0.0, min(A.shape))


def _lanczos(A: LinearOperator, rtol: float | None, generator: torch.Generator, most: int, on_failure: str) -> Estimate:
    direct = is_hermitian(A) and A.in_space == A.out_space
    squared = Congruence(A if A.shape[1] <= A.shape[0] else A.H)
    try:
        found = eigsh(
            A if direct else squared,
            1,
            which="magnitude",
            rtol=rtol,
            max_products=most,
            generator=generator,
        )
        missed = None
    except NotConvergedError as error:
        found, missed = error.partial, error
    value, residual = abs(float(found.values[0])), float(found.residuals[0])
    if not direct:
        value = math.sqrt(value)
        residual = residual / value if value else 0.0  # |sigma^2 - theta| <= r, so |sigma - sqrt(theta)| <= r / sqrt
    result = Estimate(value, residual, found.products * (1 if direct else 2))
    if missed is not None:
        error = NotConvergedError("The spectral norm was not found.", repr(result), missed.remedy, result)
        conclude(error, on_failure)
    return result
