"""The effective dimension of a positive semi-definite operator: how many directions stand out of a damping."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.core.errors import SymmetryError
from hesse.core.memory import Budget
from hesse.linalg.eigenvalues import Eigenvalues, eigenvalues_rule, exact_eigenvalues, floor_rule
from hesse.linalg.estimate import Estimate
from hesse.linalg.options import check_positive, require_hermitian, rounding
from hesse.linalg.quadrature import LanczosRuns
from hesse.linalg.quadrature_question import Question, answer, checked
from hesse.linalg.slq import Measure, by_bounds
from hesse.operators import LinearOperator, Tag
from hesse.operators.spread import asked_together


@asked_together
def effective_dimension(  # noqa: PLR0913 - the operator, the damping, how exactly, and within which limits
    A: LinearOperator,
    damping: float,
    *,
    method: str = "auto",
    rtol: float = 0.01,
    atol: float = 0.0,
    generator: torch.Generator | None = None,
    max_products: int = 10_000,
    on_failure: str = "raise",
    memory: Budget | None = None,
) -> Estimate:
    """``trace(A (A + damping I)^-1)``: how many eigenvalues of `A` are above `damping`, counted softly.

    The effective number of parameters of MacKay (Neural Computation 4, 1992), or degrees of freedom of ridge regression.
    The quadrature needs no solve: its Gauss and Gauss-Radau rules enclose each ``v^H A (A + damping I)^-1 v``, from the
    same products that conjugate gradients would take.

    Args:
        A: a positive semi-definite operator, tagged SYMMETRIC (real), HERMITIAN or PSD.
        damping: above 0, in the units of the eigenvalues.
        method: ``"exact"``: from all eigenvalues, by the structure or the dense matrix; ``"lanczos"``: stochastic Lanczos
            quadrature; ``"auto"``: exact where the structure knows the eigenvalues, where dim is at most 512, or where (up
            to dim 2000) the quadrature would take more products than the matrix; else the quadrature.
        rtol, atol: the quadrature stops once its standard error and its truncation together are below
            ``max(atol, rtol * value)``.
        generator: source of the random signs.
        max_products: products that the quadrature may take.
        on_failure: ``"raise"``, or ``"return"`` what was reached, with a warning.
        memory: bytes, fraction or text; by default the budget in force.

    Returns:
        an `Estimate` between 0 and dim, which works as a float.

    Raises:
        SymmetryError: the operator is not tagged Hermitian, or has a negative eigenvalue.
        StructureError: no such method, or no tolerance, or no positive damping.
        NotConvergedError: the tolerance was not reached; carries the estimate.

    Cost: exact: dim products, or none where the structure is known. Quadrature: steps like those of conjugate gradients
    (``sqrt(largest eigenvalue / damping)`` or fewer) for each of about ``2 / (rtol^2 value)`` probes.
    """
    require_hermitian(A, "effective_dimension", "for a Jacobian J use J.H @ J, positive semi-definite by construction")
    check_positive("effective_dimension", damping=damping)
    options = checked("effective_dimension", method, (rtol, atol), max_products, generator, on_failure, memory)

    return answer(A, _question(A, damping), options)


def _question(A: LinearOperator, damping: float) -> Question:
    def share(values: Tensor) -> Tensor:
        return values / (values + damping)

    def over(known: Eigenvalues) -> float:
        _require_psd(known.values, known.noise)
        return known.sum(share(known.values.clamp_min(0)))

    def by_structure() -> float | None:
        known = eigenvalues_rule(A)
        return None if known is None else over(known)

    bounds = by_bounds(share, max(floor_rule(A) or 0.0, 0.0))

    def values(runs: LanczosRuns) -> tuple[Tensor, float]:
        nodes, _ = runs.gauss()
        if Tag.PSD not in A.tags:  # known to be: what is below zero is the rounding of a float32 model
            _require_psd(nodes, 100 * rounding(A) * float(nodes.abs().max()))
        return bounds.values(runs)

    measure = Measure(values, bounds.size)
    return Question("effective dimension", by_structure, lambda: over(exact_eigenvalues(A)), measure)


def _require_psd(values: Tensor, noise: float) -> None:
    lowest = float(values.min()) if values.numel() else 0.0
    if lowest < -noise:
        raise SymmetryError(
            "effective_dimension needs a positive semi-definite operator.",
            f"an eigenvalue (or Rayleigh quotient) of {lowest:.6g}",
            "use a Gauss-Newton or Fisher matrix, or shift it: A + c * hesse.identity(A.in_space)",
        )
