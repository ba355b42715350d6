"""The trace of a function of a Hermitian operator: exact, or by stochastic Lanczos quadrature."""

from __future__ import annotations

import torch

from hesse.core.memory import Budget
from hesse.linalg.eigenvalues import Eigenvalues, eigenvalues_rule, exact_eigenvalues
from hesse.linalg.estimate import Estimate
from hesse.linalg.options import require_hermitian
from hesse.linalg.quadrature_question import Question, answer, checked
from hesse.linalg.slq import Function, by_convergence, evaluate
from hesse.operators import LinearOperator, Tag
from hesse.operators.spread import asked_together


@asked_together
def function_trace(  # noqa: PLR0913 - the operator, the function, how exactly, and within which limits
    A: LinearOperator,
    f: Function,
    *,
    method: str = "auto",
    rtol: float = 0.01,
    atol: float = 0.0,
    generator: torch.Generator | None = None,
    max_products: int = 10_000,
    on_failure: str = "raise",
    memory: Budget | None = None,
) -> Estimate:
    """The trace of ``f(A)``: the sum of `f` over the eigenvalues of a Hermitian operator.

    Args:
        A: an operator tagged SYMMETRIC (real), HERMITIAN or PSD.
        f: maps a tensor of real numbers (float64, any shape) to one of the same shape, entry by entry: ``torch.sqrt``,
            ``lambda x: (-x).exp()``. The numbers lie between the smallest and the largest eigenvalue, up to rounding
            (never below 0 where `A` is tagged PSD).
        method: ``"exact"``: from all eigenvalues, by the structure or the dense matrix; ``"lanczos"``: stochastic Lanczos
            quadrature (Ubaru, Chen and Saad 2017) with full re-orthogonalization; ``"auto"``: exact where the structure
            knows the eigenvalues, where dim is at most 512, or where (up to dim 2000) the quadrature would take more
            products than the matrix; else the quadrature.
        rtol, atol: the quadrature stops once its standard error and its truncation together are below
            ``max(atol, rtol * |value|)``.
        generator: source of the random signs.
        max_products: products that the quadrature may take.
        on_failure: ``"raise"``, or ``"return"`` what was reached, with a warning.
        memory: bytes, fraction or text; by default the budget in force.

    Returns:
        an `Estimate`, which works as a float; from the quadrature one that also tells its truncation, probes and steps.

    Raises:
        SymmetryError: the operator is not tagged Hermitian.
        StructureError: no such method, or no tolerance.
        NonFiniteError: `f` is not finite on the spectrum.
        NotConvergedError: the tolerance was not reached; carries the estimate.
        MemoryBudgetError: not even the basis of one probe fits.

    Cost: exact: dim products, or none where the structure is known. Quadrature: 10 to 100 steps (the smoother `f` is on
    the spectrum, the fewer) for each of at least 16 and about ``2 |f(A)|_F^2 / (rtol trace f(A))^2`` probes.
    """
    require_hermitian(A, "function_trace", "for other operators take functions of the singular values: of A.H @ A")
    options = checked("function_trace", method, (rtol, atol), max_products, generator, on_failure, memory)
    is_psd = Tag.PSD in A.tags

    def over(known: Eigenvalues) -> float:
        return known.sum(evaluate(f, known.values.clamp_min(0) if is_psd else known.values))

    def by_structure() -> float | None:
        known = eigenvalues_rule(A)
        return None if known is None else over(known)

    question = Question("trace of the function", by_structure, lambda: over(exact_eigenvalues(A)), by_convergence(f, is_psd))
    return answer(A, question, options)
