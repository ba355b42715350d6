"""The trace of a square operator: exact, or estimated with its standard error."""

from __future__ import annotations

import math
from functools import singledispatch

import torch
from torch import Tensor

from hesse.core import random
from hesse.core.errors import NotConvergedError, StructureError
from hesse.core.memory import Budget
from hesse.linalg.diagonal import diagonal_rule, exact_diagonal
from hesse.linalg.estimate import Estimate
from hesse.linalg.hutchinson import Mean, sample_mean
from hesse.linalg.norm_rules import norm_rule
from hesse.linalg.options import (
    ON_FAILURE,
    check_choice,
    check_positive,
    conclude,
    is_complex,
    is_hermitian,
    require_square,
    rounding,
)
from hesse.linalg.products import apply, rows_at_once, sign_vectors
from hesse.operators import BlockDiagonal, Congruence, Conjugate, LinearOperator, Scaled, Sum

EXACT_PRODUCTS = 128  # up to this dimension the exact answer is not worth estimating
_METHODS = ("auto", "exact", "hutchinson")


def trace(
    A: LinearOperator,
    *,
    method: str = "auto",
    rtol: float = 0.05,
    atol: float = 0.0,
    generator: torch.Generator | None = None,
    max_products: int = 10_000,
    on_failure: str = "raise",
    memory: Budget | None = None,
) -> Estimate:
    """The trace of a square operator.

    Args:
        A: the operator.
        method: ``"exact"``; ``"hutchinson"`` (Hutchinson 1989: the mean of ``v^H A v`` over random signs
            ``v``); ``"auto"``: exact where the structure knows it, where dim is at most 128, or where an
            estimate would take more products than the exact trace; else the estimate.
        rtol, atol: the estimate stops once its standard error is below ``max(atol, rtol * |value|)``.
        generator: source of the random signs.
        max_products: products that an estimate may take.
        on_failure: ``"raise"``, or ``"return"`` the estimate reached, with a warning.
        memory: bytes, fraction or text; by default the budget in force.

    Returns:
        an `Estimate`, which works as a float; its standard error is 0 where the value is exact.

    Raises:
        StructureError: the operator is not square, or there is no such method.
        NotConvergedError: the tolerance was not reached (traces near zero have no relative error: give an
            `atol`).

    Cost: nothing but arithmetic where the structure knows it; exact: dim products; estimate: about
    ``2 (|A|_F / (rtol tr A))^2`` products, in blocks of up to 64.
    """
    check_choice("trace", "method", method, _METHODS)
    check_choice("trace", "on_failure", on_failure, ON_FAILURE)
    require_square(A, "trace", "take the trace of A.T @ A or of A @ A.T")
    check_positive("trace", max_products=max_products)
    if not (rtol >= 0 and atol >= 0 and rtol + atol > 0):
        asked = "trace needs tolerances rtol >= 0 and atol >= 0, one of them above 0."
        raise StructureError(asked, f"rtol={rtol}, atol={atol}", "pass a fraction such as rtol=0.05")
    dim = A.shape[0]
    if method != "hutchinson":
        known = trace_rule(A)
        if known is not None:
            return Estimate(_number(A, known))
        if method == "exact" or dim <= EXACT_PRODUCTS:
            return _exact(A, memory, 0)
    exact_cost = dim if method == "auto" and dim <= max_products else math.inf
    mean = _hutchinson(A, rtol, atol, generator or random.make_generator(), max_products, exact_cost, memory)
    if not mean.converged and exact_cost < math.inf:
        return _exact(A, memory, mean.samples)
    result = Estimate(_number(A, mean.value), mean.standard_error, mean.samples)
    if not mean.converged:
        conclude(_failure(result, rtol, atol), on_failure)
    return result


def _failure(partial: Estimate, rtol: float, atol: float) -> NotConvergedError:
    return NotConvergedError(
        f"The trace was not estimated to rtol={rtol}, atol={atol}.",
        f"{partial}",
        "raise max_products or rtol, give an atol (for a trace near zero), or use method='exact'",
        partial,
    )


def _exact(A: LinearOperator, memory: Budget | None, spent: int) -> Estimate:
    return Estimate(_number(A, total(exact_diagonal(A, memory))), 0.0, spent + A.shape[0])


def _number(A: LinearOperator, value: complex) -> float | complex:
    """Real wherever it must be."""
    value = complex(value)
    return value.real if is_hermitian(A) or not is_complex(A) else value


def total(entries: Tensor) -> complex:
    """The sum of a vector's entries, 16-bit ones in float32."""
    dtype = torch.float32 if entries.dtype in (torch.float16, torch.bfloat16) else entries.dtype
    return complex(entries.detach().sum(dtype=dtype).item())


def _hutchinson(
    A: LinearOperator,
    rtol: float,
    atol: float,
    generator: torch.Generator,
    most: int,
    exact_cost: float,
    memory: Budget | None,
) -> Mean:
    eps = rounding(A)

    def draw(count: int) -> tuple[Tensor, float]:
        probes = sign_vectors(A.in_space, count, generator)
        products = apply(A, probes)
        samples = (probes.conj() * products).sum(-1)
        sizes = torch.linalg.vector_norm(products, dim=-1) * A.shape[1] ** 0.5
        samples = samples.cpu().to(torch.complex128 if samples.is_complex() else torch.float64)
        return (samples.real if is_hermitian(A) else samples), eps * float(sizes.mean())

    if A.shape[0] == 0:
        return Mean(0.0, 0.0, 0, True)
    at_once = rows_at_once(A, most, "the estimate of the trace", memory=memory)
    return sample_mean(
        draw,
        rtol=rtol,
        atol=atol,
        most=most,
        exact_cost=exact_cost,
        at_once=at_once,
        label="trace (random signs)",
    )


@singledispatch
def trace_rule(A: LinearOperator) -> complex | None:
    """The open rule behind `trace`: a number, or None where no structure knows it without many products."""
    known = diagonal_rule(A)
    return None if known is None else total(known)


@trace_rule.register(Sum)
def _sum(A: Sum) -> complex | None:
    return _add([trace_rule(term) for term in A.terms])


@trace_rule.register(BlockDiagonal)
def _blocks(A: BlockDiagonal) -> complex | None:
    blocks = A.blocks.values()
    return _add([trace_rule(block) if block.shape[0] == block.shape[1] else None for block in blocks])


def _add(parts: list[complex | None]) -> complex | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


@trace_rule.register(Scaled)
def _scaled(A: Scaled) -> complex | None:
    known = trace_rule(A.operator)
    factor = A.factor.item() if isinstance(A.factor, Tensor) else A.factor
    return None if known is None else factor * known


@trace_rule.register(Conjugate)
def _conjugate(A: Conjugate) -> complex | None:
    known = trace_rule(A.operator)
    return None if known is None else complex(known).conjugate()


@trace_rule.register(Congruence)
def _congruence(A: Congruence) -> complex | None:
    if A.middle is None and is_complex(A.outer) == A.in_space.dtype.is_complex:
        size = norm_rule(A.outer, "fro")  # trace(J^H J) = |J|_F^2
        return None if size is None else size**2
    known = diagonal_rule(A)
    return None if known is None else total(known)
