"""Solve a square linear system; never without looking at the true residual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.core.errors import NonFiniteError, NotConvergedError, StructureError
from hesse.core.tree import Tree
from hesse.linalg.answer import Answer, solve_matrix
from hesse.linalg.cg import conjugate_gradients
from hesse.linalg.dense import dense
from hesse.linalg.options import (
    ON_FAILURE,
    check_choice,
    check_positive,
    conclude,
    is_hermitian,
    require_hermitian,
    require_square,
    rounding,
)
from hesse.linalg.products import apply, row_norms, work_dtype
from hesse.linalg.solve_rules import solve_rule
from hesse.operators import LinearOperator

_METHODS = ("auto", "cg", "dense")
_DENSE_DIM = 1000
_REFINEMENTS = 2


@dataclass(frozen=True, eq=False)
class Solution:
    """A solution with what is known of it.

    Attributes:
        value: the solution, a tree of `A.in_space` (batch axes of b in front).
        residual: ``|b - A x| / |b|`` with the true operator, the largest over the batch.
        iterations: steps of the iterative method; 0 for a direct one.
        condition: an estimate of the condition number (dense: in the 1-norm; conjugate gradients: a lower
            bound of that in the 2-norm of the preconditioned operator), or None.
        method: ``"structure"``, ``"dense"`` or ``"cg"``.
    """

    value: Tree
    residual: float
    iterations: int
    condition: float | None
    method: str


def solve(
    A: LinearOperator,
    b: Tree,
    *,
    method: str = "auto",
    rtol: float | None = None,
    max_iterations: int | None = None,
    preconditioner: LinearOperator | None = None,
    on_failure: str = "raise",
    full: bool = False,
) -> Any:
    """The x with ``A x = b``.

    Args:
        A: a square operator.
        b: a tree of `A.out_space`; batch axes in front of every leaf are allowed.
        method: ``"dense"``: LU of the matrix. ``"cg"``: conjugate gradients, for Hermitian positive definite
            operators. ``"auto"``: by the structure (identity, diagonal, dense, Kronecker, block-diagonal,
            diagonal plus low rank, scaled) where there is one; else dense up to dimension 1000; else
            conjugate gradients.
        rtol: largest ``|b - A x| / |b|``; by default 1e-8, or the root of the rounding unit of the coarsest
            leaf dtype where that is larger (3.5e-4 in float32).
        max_iterations: of conjugate gradients; by default ``10 dim``, at most 10000.
        preconditioner: an operator close to the inverse of `A`, Hermitian positive definite; for conjugate
            gradients.
        on_failure: ``"raise"``, or ``"return"`` what was reached, with a warning.
        full: return a `Solution` instead of its value.

    Raises:
        StructureError: `A` is not square, `b` is not in its space, or there is no such method.
        SymmetryError: conjugate gradients on an operator that is not tagged Hermitian, or that shows negative
            curvature.
        NotConvergedError: the true residual is larger than asked for, or the operator is singular; carries
            the `Solution` reached.

    Cost: dense: dim products, in blocks. Conjugate gradients: a product a step, about ``sqrt(condition)`` steps,
    the right-hand sides of a batch in one block. One more product to check the residual.
    """
    check_choice("solve", "method", method, _METHODS)
    check_choice("solve", "on_failure", on_failure, ON_FAILURE)
    require_square(A, "solve", "solve the normal equations with A.H @ A")
    check_positive("solve", rtol=rtol, max_iterations=max_iterations)
    rtol = _default_rtol(A) if rtol is None else rtol
    steps = min(10 * A.shape[0], 10_000) if max_iterations is None else max_iterations
    _check_preconditioner(A, preconditioner)
    B, batch = _right_hand_sides(A, b)
    options = _Options(rtol, steps, preconditioner)
    used, answer = _answer(A, B, method, options)
    residual = _residual(A, B, answer.value)
    value = A.in_space.unravel(answer.value.reshape(*batch, A.shape[1]))
    result = Solution(value, residual, answer.iterations, answer.condition, used)
    if answer.trouble or residual > rtol:
        conclude(_failure(A, result, rtol, answer), on_failure)
    return result if full else value


@dataclass(frozen=True)
class _Options:
    rtol: float
    max_iterations: int
    preconditioner: LinearOperator | None


def _default_rtol(A: LinearOperator) -> float:
    eps = rounding(A)
    return 1e-8 if eps < 1e-15 else max(1e-8, eps**0.5)


def _check_preconditioner(A: LinearOperator, preconditioner: LinearOperator | None) -> None:
    if preconditioner is None:
        return
    if preconditioner.in_space != A.out_space or preconditioner.out_space != A.in_space:
        raise StructureError(
            "A preconditioner maps the space of b to the space of x.",
            f"{preconditioner.in_space} to {preconditioner.out_space}",
            f"use an operator on {A.out_space}",
        )


def _right_hand_sides(A: LinearOperator, b: Tree) -> tuple[Tensor, torch.Size]:
    """``[k, dim]`` in the working dtype, and the batch axes that b had."""
    parts = A.out_space.check(b, "the right-hand side", None)
    lead = parts[0].ndim - len(A.out_space.shapes[0]) if parts else 0
    batch = parts[0].shape[:lead] if parts else torch.Size()
    flat = A.out_space.ravel(A.out_space.rebuild(parts), lead).detach()
    if not bool(torch.isfinite(flat).all()):
        raise NonFiniteError("solve needs a finite right-hand side.", "NaN or infinity in b", "look where b comes from")
    return flat.reshape(batch.numel(), A.shape[0]).to(work_dtype(flat.dtype)), batch


def _answer(A: LinearOperator, B: Tensor, method: str, options: _Options) -> tuple[str, Answer]:
    if method == "auto":

        def by_structure(R: Tensor) -> Answer | None:
            return solve_rule(A, R, lambda part, rows: _answer(part, rows, "auto", options)[1])

        found = by_structure(B)
        if found is not None:
            return "structure", _refined(A, B, found, options.rtol, by_structure)
        method = "dense" if A.shape[0] <= _DENSE_DIM else "cg"
    if method == "dense":
        matrix = dense(A)
        return "dense", _refined(A, B, solve_matrix(matrix, B), options.rtol, lambda R: solve_matrix(matrix, R))
    remedy = "or use method='dense', or the normal equations with A.H @ A"
    require_hermitian(A, "solve by conjugate gradients", remedy)
    # inner parts get the preconditioner of the whole only if it fits them
    fits = options.preconditioner is not None and options.preconditioner.in_space == A.out_space
    return "cg", conjugate_gradients(A, B, options.rtol, options.max_iterations, options.preconditioner if fits else None)


def _refined(A: LinearOperator, B: Tensor, found: Answer, rtol: float, direct: Callable[[Tensor], Answer | None]) -> Answer:
    """The answer, corrected by the direct method itself where its residual is not small enough."""
    value = found.value
    for _ in range(_REFINEMENTS):
        if found.trouble or _residual(A, B, value) <= rtol:
            break
        correction = direct(B - apply(A, value))
        if correction is None:
            break
        value = value + correction.value
    return Answer(value, found.condition, found.iterations, found.trouble)


def _residual(A: LinearOperator, B: Tensor, X: Tensor) -> float:
    """The largest ``|b - A x| / |b|``; 0 for b = 0 = A x."""
    if not B.numel():
        return 0.0
    missed, size = row_norms(B - apply(A, X)), row_norms(B)
    relative = torch.where(missed == 0, missed, missed / size)
    return float(relative.max())


def _failure(A: LinearOperator, partial: Solution, rtol: float, answer: Answer) -> NotConvergedError:
    found = f"a relative residual of {partial.residual:.2g} after {partial.iterations} iterations"
    if answer.trouble:
        found += f"; {answer.trouble}"
    if answer.condition is not None:
        found += f"; condition number about {answer.condition:.1g}"
    remedy = "add damping (A + c * hesse.identity(A.in_space)), which makes a singular operator regular"
    if partial.method == "cg":
        remedy += ", a preconditioner or more max_iterations" if is_hermitian(A) else ""
    return NotConvergedError(
        f"solve by {partial.method} did not reach rtol={rtol:.2g}.", found, remedy + ", or float64", partial
    )
