"""The log-determinant of a Hermitian positive definite operator: exact, or by stochastic Lanczos quadrature."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.core.memory import Budget
from hesse.linalg.dense import matrix_for
from hesse.linalg.eigenvalues import floor_rule
from hesse.linalg.estimate import Estimate
from hesse.linalg.logdet_rules import logdet_rule, matrix_logdet, not_definite
from hesse.linalg.options import require_hermitian, rounding
from hesse.linalg.quadrature import LanczosRuns
from hesse.linalg.quadrature_question import Question, answer, checked
from hesse.linalg.slq import Measure, by_bounds, by_convergence
from hesse.operators import LinearOperator
from hesse.operators.spread import asked_together


@asked_together
def logdet(
    A: LinearOperator,
    *,
    method: str = "auto",
    rtol: float = 0.01,
    atol: float = 0.0,
    generator: torch.Generator | None = None,
    max_products: int = 10_000,
    on_failure: str = "raise",
    memory: Budget | None = None,
) -> Estimate:
    """The logarithm of the determinant of a Hermitian positive definite operator.

    Args:
        A: an operator tagged SYMMETRIC (real), HERMITIAN or PSD, all of whose eigenvalues are above 0.
        method: ``"exact"``: by the structure, or the Cholesky factor of the dense matrix; ``"lanczos"``: stochastic Lanczos
            quadrature (Ubaru, Chen and Saad 2017) with full re-orthogonalization; ``"auto"``: exact where the structure
            knows it (diagonal, Kronecker, block-diagonal, sparse, diagonal plus low rank, any of them plus a multiple of the
            identity), where dim is at most 512, or where (up to dim 2000) the quadrature would take more products than the
            matrix; else the quadrature.
        rtol, atol: the quadrature stops once its standard error and its truncation together are below
            ``max(atol, rtol * |value|)``. In a ratio of evidences an absolute error counts: give an `atol`.
        generator: source of the random signs.
        max_products: products that the quadrature may take.
        on_failure: ``"raise"``, or ``"return"`` what was reached, with a warning.
        memory: bytes, fraction or text; by default the budget in force.

    Returns:
        an `Estimate`, which works as a float. Its truncation is a bound where a positive lower bound of the spectrum is
        known (a PSD operator plus a multiple of the identity): there the Gauss and Gauss-Radau rules enclose the truth.

    Raises:
        SymmetryError: the operator is not tagged Hermitian (`slogdet` takes any), or not positive definite to working
            precision.
        StructureError: no such method, or no tolerance.
        NotConvergedError: the tolerance was not reached; carries the estimate.
        MemoryBudgetError: not even the basis of one probe fits.

    Cost: exact: dim products, or none where the structure is known. Quadrature: steps like those of conjugate gradients
    for each of at least 16 and about ``2 |log A|_F^2 / (rtol logdet A)^2`` probes.
    """
    remedy = "A.H @ A is tagged by itself; for any other square operator use hesse.slogdet, which gives sign and log |det A|"
    require_hermitian(A, "logdet", remedy)
    options = checked("logdet", method, (rtol, atol), max_products, generator, on_failure, memory)
    floor, noise = floor_rule(A) or 0.0, 8 * rounding(A) * A.shape[0]
    rule = by_bounds(torch.log, floor, noise) if floor > 0 else by_convergence(torch.log, False, noise)

    def values(runs: LanczosRuns) -> tuple[Tensor, float]:
        nodes, _ = runs.gauss()
        lowest, highest = float(nodes.min()), float(nodes.abs().max())
        if lowest <= rounding(A) * highest:
            raise not_definite(f"a Rayleigh quotient of {lowest:.6g}, where the largest eigenvalue is about {highest:.6g}")
        return rule.values(runs)

    measure = Measure(values, rule.size, noise)
    by_matrix = lambda: matrix_logdet(matrix_for(A, "the log-determinant", 5, memory))  # noqa: E731
    question = Question("log-determinant", lambda: logdet_rule(A), by_matrix, measure)
    return answer(A, question, options)
