"""What traces of functions, log-determinants and effective dimensions share: exact where cheap, else by quadrature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from hesse.core import random
from hesse.core.errors import NotConvergedError, StructureError
from hesse.core.memory import Budget, current_budget
from hesse.linalg.estimate import Estimate
from hesse.linalg.options import ON_FAILURE, check_choice, check_positive, conclude
from hesse.linalg.products import work_dtype
from hesse.linalg.slq import Limits, Measure, Sampling
from hesse.operators import LinearOperator

METHODS = ("auto", "exact", "lanczos")
EXACT_DIM = 512  # up to here the matrix takes no more products than 16 probes of 32 steps
_SWITCH_DIM = 2000  # up to here all eigenvalues of the matrix are affordable where many probes are needed


@dataclass(frozen=True)
class Question:
    """One question and its three answers.

    Attributes:
        name: how errors and progress call it.
        structure: the number, or None where no structure knows it.
        matrix: the number from the dense matrix.
        measure: what the quadrature integrates.
    """

    name: str
    structure: Callable[[], float | None]
    matrix: Callable[[], float]
    measure: Measure


@dataclass(frozen=True)
class Options:
    """The options of a question, checked by `checked`."""

    method: str
    limits: Limits
    generator: torch.Generator
    on_failure: str
    memory: Budget | None


def checked(
    question: str,
    method: str,
    tolerances: tuple[float, float],
    max_products: int,
    generator: torch.Generator | None,
    on_failure: str,
    memory: Budget | None,
) -> Options:
    """The options, or a `StructureError` that names the wrong one."""
    check_choice(question, "method", method, METHODS)
    check_choice(question, "on_failure", on_failure, ON_FAILURE)
    check_positive(question, max_products=max_products)
    check_tolerances(question, *tolerances)
    limits = Limits(*tolerances, products=max_products)
    return Options(method, limits, generator or random.make_generator(), on_failure, memory)


def check_tolerances(question: str, rtol: float, atol: float) -> None:
    """Raise `StructureError` unless both are numbers of at least 0, and one above."""
    if not (rtol >= 0 and atol >= 0 and rtol + atol > 0):
        asked = f"{question} needs tolerances rtol >= 0 and atol >= 0, one of them above 0."
        raise StructureError(asked, f"rtol={rtol}, atol={atol}", "pass a fraction such as rtol=0.01")


def matrix_fits(A: LinearOperator, memory: Budget | None) -> bool:
    """Whether the matrix and its decomposition fit into the memory budget."""
    needed = 4 * A.shape[0] ** 2 * work_dtype(A.in_space.dtype).itemsize
    return needed <= current_budget(memory, A.in_space.device)


def answer(A: LinearOperator, question: Question, options: Options) -> Estimate:
    """By structure, by the matrix where it is small or cheaper, else by stochastic Lanczos quadrature.

    Raises:
        NotConvergedError: the tolerance was not reached; carries the estimate.
    """
    dim, method, limits = A.shape[0], options.method, options.limits
    if method != "lanczos":
        known = question.structure()
        if known is not None:
            return Estimate(known)
        if method == "exact" or (dim <= EXACT_DIM and matrix_fits(A, options.memory)):
            return Estimate(question.matrix(), 0.0, dim)
    may_switch = method == "auto" and dim <= min(_SWITCH_DIM, limits.products) and matrix_fits(A, options.memory)
    if may_switch:
        limits = replace(limits, exact=dim)
    label = f"{question.name} (Lanczos quadrature)"
    found = Sampling(A, question.measure, limits, options.generator, options.memory, label).run()
    if not found.converged and may_switch:
        return Estimate(question.matrix(), 0.0, found.products + dim)
    estimate = found.estimate()
    if not found.converged:
        asked = f"The {question.name} was not estimated to rtol={limits.rtol}, atol={limits.atol}."
        told = f"{estimate!r}, of which {found.truncation:.1g} is the truncation of {found.steps} Lanczos steps"
        remedy = "raise max_products or rtol, give an atol (for values near zero), or use method='exact'"
        conclude(NotConvergedError(asked, told, remedy, estimate), options.on_failure)
    return estimate
