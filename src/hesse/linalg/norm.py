"""Norms of an operator: Frobenius and spectral."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hesse.core import random
from hesse.core.batching import slices
from hesse.core.errors import NotConvergedError
from hesse.core.memory import Budget
from hesse.linalg.dense import dense
from hesse.linalg.eigen import eigsh
from hesse.linalg.estimate import Estimate
from hesse.linalg.hutchinson import sample_mean
from hesse.linalg.norm_rules import Order, frobenius, norm_rule, spectral
from hesse.linalg.options import ON_FAILURE, check_choice, check_positive, conclude, is_hermitian
from hesse.linalg.products import apply, rows_at_once, sign_vectors, unit_vectors
from hesse.operators import Congruence, LinearOperator

_EXACT_PRODUCTS = 128  # up to this many products the exact answer is not worth estimating
_METHODS = {"fro": ("auto", "exact", "hutchinson"), 2: ("auto", "exact", "lanczos")}


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
        method: ``"exact"``; for the Frobenius norm ``"hutchinson"``, from ``|A|_F^2 = E |A v|^2`` over random
            signs; for the spectral norm ``"lanczos"``, on `A` if it is Hermitian, else on ``A^H A`` or ``A
            A^H``, whichever is smaller; ``"auto"``: exact where the structure knows it or where that takes at
            most 128 products.
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

    Cost: exact: ``min(out, in)`` products; Hutchinson: about ``1 / (2 rtol^2)`` at worst; Lanczos: tens.
    """
    check_choice("norm", "ord", ord, tuple(_METHODS))
    check_choice(f"norm with ord={ord!r}", "method", method, _METHODS[ord])
    check_choice("norm", "on_failure", on_failure, ON_FAILURE)
    check_positive("norm", rtol=rtol, max_products=max_products)
    if method in ("auto", "exact"):
        known = norm_rule(A, ord)
        if known is not None:
            return Estimate(float(known))
        if method == "exact" or min(A.shape) <= _EXACT_PRODUCTS:
            return _exact_frobenius(A, memory) if ord == "fro" else _exact_spectral(A, memory)
    source = generator or random.make_generator()
    if ord == 2:
        return _lanczos(A, rtol, source, max_products, on_failure)
    result, converged = _hutchinson(A, rtol or 0.05, source, max_products, method == "auto", memory)
    if not converged and method == "auto" and min(A.shape) <= max_products:
        return _exact_frobenius(A, memory, result.products)
    if not converged:
        asked, remedy = "The Frobenius norm was not estimated to its tolerance.", "raise max_products or rtol"
        conclude(NotConvergedError(asked, repr(result), remedy, result), on_failure)
    return result


def _exact_frobenius(A: LinearOperator, memory: Budget | None, spent: int = 0) -> Estimate:
    if A.shape[0] < A.shape[1] and A.in_space.dtype == A.out_space.dtype:
        A = A.T
    dim, sizes = A.shape[1], [0.0]
    for part in slices(dim, rows_at_once(A, dim, "the Frobenius norm", memory=memory), "Frobenius norm"):
        sizes.append(frobenius(apply(A, unit_vectors(A.in_space, part.start, part.stop))))
    return Estimate(math.hypot(*sizes), 0.0, spent + dim)


def _exact_spectral(A: LinearOperator, memory: Budget | None) -> Estimate:
    return Estimate(spectral(dense(A, memory=memory)), 0.0, min(A.shape))


def _hutchinson(
    A: LinearOperator,
    rtol: float,
    generator: torch.Generator,
    most: int,
    may_give_up: bool,
    memory: Budget | None,
) -> tuple[Estimate, bool]:
    def draw(count: int) -> tuple[Tensor, float]:
        products = apply(A, sign_vectors(A.in_space, count, generator))
        return torch.linalg.vector_norm(products, dim=-1).cpu().double().square(), 0.0

    at_once = rows_at_once(A, most, "the estimate of the norm", memory=memory)
    exact_cost = min(A.shape) if may_give_up and min(A.shape) <= most else math.inf
    mean = sample_mean(
        draw,
        rtol=2 * rtol,
        atol=0.0,
        most=most,
        exact_cost=exact_cost,
        at_once=at_once,
        label="norm (random signs)",
    )
    value = math.sqrt(mean.value.real)
    return Estimate(value, mean.standard_error / (2 * value) if value else 0.0, mean.samples), mean.converged


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
