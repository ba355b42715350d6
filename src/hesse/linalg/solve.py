"""Solve a square linear system; never without looking at the true residual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from torch import Tensor, isfinite

from hesse.core.errors import NotConvergedError, StructureError
from hesse.core.tree import Tree
from hesse.linalg.answer import Answer, evaluated, solve_cholesky, solve_matrix
from hesse.linalg.cg import NegativeCurvatureError, conjugate_gradients
from hesse.linalg.condition import inverse_from
from hesse.linalg.dense import matrix_for, matrix_has_room
from hesse.linalg.differentiable_rules import differentiable_solution
from hesse.linalg.groups import CG, LSMR, MINRES, in_groups
from hesse.linalg.inverse_bound import definite_ends
from hesse.linalg.lsmr import lsmr
from hesse.linalg.minres import minimal_residual
from hesse.linalg.options import (
    ON_FAILURE,
    check_choice,
    check_positive,
    conclude,
    is_hermitian,
    require_hermitian,
    require_square,
)
from hesse.linalg.products import apply, row_norms
from hesse.linalg.solution import (
    Sizes,
    Solution,
    backward_rounding,
    default_rtol,
    error_bound,
    largest_residual,
    norm_from_below,
    relative_residual,
    right_hand_sides,
)
from hesse.linalg.solve_rules import solve_rule
from hesse.linalg.woodbury import woodbury
from hesse.operators import LinearOperator
from hesse.operators.algebra import compose
from hesse.operators.spread import asked_together

_METHODS = ("auto", "cg", "cholesky", "dense", "lsmr", "minres", "woodbury")
_NAMES = {"cg": "conjugate gradients", "minres": "MINRES", "cholesky": "its Cholesky factor"}
_ITERATIVE = ("cg", "lsmr", "minres")
_REMEDY = "or use method='lsmr' or 'dense', which need no symmetry"
_DENSE_DIM = 1000
_COPIES = 5  # of a matrix, while it is factored and a solution is found
_REFINEMENTS = 2
_TIMES, _FURTHER = 2, 32  # of the steps of conjugate gradients, for a bound of their error


@asked_together
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
        method: ``"cg"``: conjugate gradients, for Hermitian positive definite operators. ``"minres"``: for Hermitian ones,
            indefinite ones too. ``"lsmr"``: for any. ``"woodbury"``: ``c I + J^H H J`` by a system of the size of the rows of
            J. ``"dense"``: LU of the matrix; ``"cholesky"``: its Cholesky factor (positive definite). ``"auto"``: by the
            structure (diagonal, dense, Kronecker, block-diagonal, scaled; sums of a diagonal with low ranks, blocks, a matrix;
            Kronecker plus ``c I``; sparse operators, their sums and products by LU factors) where there is one; else Woodbury
            where that pays; else dense up to dimension 1000; else conjugate gradients if tagged Hermitian, and MINRES once
            they meet negative curvature; else LSMR.
        rtol: largest ``|b - A x| / |b|``; by default 1e-8, or the root of the rounding unit of the coarsest
            leaf dtype where that is larger (3.5e-4 in float32). Rules that know ``|A|`` (convolutions) may leave 32
            units of rounding times ``|A| |x| + |b|``, too (Rigal and Gaches 1967).
        max_iterations: of an iterative method; by default ``10 dim``, at most 10000.
        preconditioner: an operator close to the inverse of `A`, for iterative methods; Hermitian positive definite
            except for LSMR. See `jacobi`, `deflation` and `nystrom`.
        on_failure: ``"raise"``, or ``"return"`` what was reached, with a warning.
        full: return a `Solution` instead of its value; a value alone has derivatives for convolutions, else it is a number.

    Raises:
        StructureError: `A` is not square or not of the form that Woodbury needs, `b` is not in its space, no such method.
        SymmetryError: a method for Hermitian (positive definite) operators on one not tagged so, or that shows that it is not.
        UnsupportedError: within a transform of `torch.func`, where derivatives would silently be zero.
        NotConvergedError: the true residual is too large, or the operator is singular; carries the `Solution` reached.
        MemoryBudgetError: not even one right-hand side fits beside all of them and their solutions.
        NonFiniteError: b or a product has a NaN or an infinity, or x is out of the range of its dtype.

    Cost: dense: dim products, in blocks. A product a step, about ``sqrt(condition)`` steps for conjugate gradients, up to
    ``condition`` for MINRES (indefinite) and LSMR (two products), a batch in one block; two more for the checks.
    """
    check_choice("solve", "method", method, _METHODS)
    check_choice("solve", "on_failure", on_failure, ON_FAILURE)
    require_square(A, "solve", "use lstsq(A, b), or solve the normal equations with A.H @ A")
    check_positive("solve", rtol=rtol, max_iterations=max_iterations)
    if method == "auto" and not full and (known := differentiable_solution(A, b, "solve")) is not None:
        return known
    _check_preconditioner(A, preconditioner)
    rtol = default_rtol(A) if rtol is None else rtol
    B, batch = right_hand_sides(A, b, "solve")
    way, answer = _answer(A, B, method, _Options(rtol, max_iterations or min(10 * A.shape[0], 10_000), preconditioner))
    residual = largest_residual(A, B, answer.value) if answer.residual is None else answer.residual
    value = A.in_space.unravel(answer.value.reshape(*batch, A.shape[1]))
    error = answer.forward_error or (lambda: _error(A, B, answer, way))
    result = Solution(value, residual, answer.iterations, answer.method or way, None, answer.truncated, answer.condition, error)
    if answer.trouble or not (residual <= rtol or _is_rounding(A, B, answer, rtol)):
        conclude(_failure(result, rtol, answer), on_failure)
    return result if full else value


def _is_rounding(A: LinearOperator, B: Tensor, answer: Answer, rtol: float) -> bool:
    """Whether each residual is small, or such as rounding leaves: then x is exact for an operator that differs by so little."""
    if answer.norm is None or not bool(isfinite(answer.value).all()):
        return False
    missed, size = row_norms(B - apply(A, answer.value)), row_norms(B)
    noise = backward_rounding(A) * (answer.norm * row_norms(answer.value) + size)
    return bool(((missed <= rtol * size) | (missed <= noise)).all())


def _error(A: LinearOperator, B: Tensor, answer: Answer, method: str) -> float:
    """A bound of the relative error; the condition numbers of iterative methods are too small for it."""
    if method == "cg":
        norm, inverse, _ = definite_ends(A, _TIMES * answer.iterations + _FURTHER)
        return error_bound(A, B, answer.value, Sizes(norm, inverse, None))
    norm = norm_from_below(A) if answer.norm is None else answer.norm
    inverse = evaluated(answer.inverse_norm)
    if inverse is None:
        known = None if method in _ITERATIVE else evaluated(answer.condition)
        inverse = inverse_from(A, known, norm)
    return error_bound(A, B, answer.value, Sizes(norm, inverse, None))


@dataclass(frozen=True)
class _Options:
    rtol: float
    max_iterations: int
    preconditioner: LinearOperator | None


def _check_preconditioner(A: LinearOperator, preconditioner: LinearOperator | None) -> None:
    if preconditioner is None:
        return
    if preconditioner.in_space != A.out_space or preconditioner.out_space != A.in_space:
        raise StructureError(
            "A preconditioner maps the space of b to the space of x.",
            f"{preconditioner.in_space} to {preconditioner.out_space}",
            f"use an operator on {A.out_space}",
        )


def _answer(A: LinearOperator, B: Tensor, method: str, options: _Options) -> tuple[str, Answer]:
    if method == "auto":
        return _automatic(A, B, options)
    if method == "dense":
        matrix = matrix_for(A, "the factors", _COPIES)
        return method, _refined(A, B, options.rtol, lambda R: solve_matrix(matrix, R))
    if method == "woodbury":
        through_rows = woodbury(A, B, always=True)
        if through_rows is None:
            raise StructureError(
                "The method 'woodbury' solves c * identity + J^H H J.",
                f"{A}",
                "add damping (A + c * hesse.identity(A.in_space)) to a curvature operator of one batch, or use method='auto'",
            )
        return method, _refined(A, B, options.rtol, through_rows)
    if method in _ITERATIVE:
        return method, _iterated(A, B, method, options)
    require_hermitian(A, f"solve by {_NAMES[method]}", _REMEDY)
    matrix = matrix_for(A, "the factors", _COPIES + 1)
    return method, _refined(A, B, options.rtol, lambda R: solve_cholesky(matrix, R))


def _iterated(A: LinearOperator, B: Tensor, method: str, options: _Options) -> Answer:
    """By an iterative method, under a budget that the user has set so many right-hand sides at a time as fit."""
    # inner parts get the preconditioner of the whole only if it fits them
    P = options.preconditioner
    P = P if P is not None and P.in_space == A.out_space else None
    if method != "lsmr":
        require_hermitian(A, f"solve by {_NAMES[method]}", _REMEDY)

    def answer(R: Tensor) -> Answer:
        if method != "lsmr":
            iterate = conjugate_gradients if method == "cg" else minimal_residual
            found = iterate(A, R, options.rtol, options.max_iterations, P)
        else:
            found = lsmr(A if P is None else compose(A, P), R, options.rtol, options.max_iterations, consistent=True)
            value = found.value if P is None else apply(P, found.value)
            found = Answer(value, found.condition, found.iterations, found.trouble)
        return replace(found, residual=relative_residual(A, R, found.value))

    return in_groups(A, B, answer, {"cg": CG, "minres": MINRES, "lsmr": LSMR}[method])


def _automatic(A: LinearOperator, B: Tensor, options: _Options) -> tuple[str, Answer]:
    def by_structure(R: Tensor) -> Answer | None:
        return solve_rule(A, R, lambda part, rows: _automatic(part, rows, options)[1])

    found = _refined(A, B, options.rtol, by_structure)
    if found is not None:
        return "structure", found
    through_rows = woodbury(A, B)
    if through_rows is not None:
        found = _refined(A, B, options.rtol, through_rows)
        if not found.trouble and found.residual <= options.rtol:
            return "woodbury", found
    if A.shape[0] <= _DENSE_DIM and matrix_has_room(A, _COPIES):
        return _answer(A, B, "dense", options)
    if not is_hermitian(A) or A.in_space != A.out_space:
        return _answer(A, B, "lsmr", options)
    try:
        return _answer(A, B, "cg", options)
    except NegativeCurvatureError:
        return _answer(A, B, "minres", options)


def _refined(A: LinearOperator, B: Tensor, rtol: float, direct: Callable[[Tensor], Any]) -> Any:
    """What a direct method answers, corrected by the method itself where its residual is not small enough; None if it does."""
    found = direct(B)
    if found is None:
        return None
    value, residual = found.value, largest_residual(A, B, found.value)
    for _ in range(_REFINEMENTS):
        if found.trouble or residual <= rtol:
            break
        correction = direct(B - apply(A, value))
        if correction is None:
            break
        better = value + correction.value
        reached = largest_residual(A, B, better)
        if not reached < residual:
            break
        value, residual = better, reached
    return replace(found, value=value, residual=residual)


def _failure(partial: Solution, rtol: float, answer: Answer) -> NotConvergedError:
    found = f"a relative residual of {partial.residual:.2g} after {partial.iterations} iterations"
    if answer.trouble:
        found += f"; {answer.trouble}"
    if answer.truncated:
        found += f"; a null space of dimension {answer.truncated}"
    if isinstance(answer.condition, float) and answer.condition < inf:
        found += f"; condition number about {answer.condition:.1g}"
    asked = f"solve by {partial.method} did not reach rtol={rtol:.2g}."
    if partial.residual <= rtol and answer.trouble:
        asked = f"solve by {partial.method} needs an operator that it can tell from singular ones."
    remedy = "add damping (A + c * hesse.identity(A.in_space)), which makes a singular operator regular"
    if answer.truncated or (isinstance(answer.condition, float) and answer.condition == inf):
        remedy = f"use hesse.pinv(A) @ b or hesse.lstsq(A, b) for the shortest x of least squares; {remedy}"
    if partial.method in _ITERATIVE:
        remedy += ", a preconditioner or more max_iterations"
    if partial.method == "lsmr":
        remedy += ", use method='dense'"
    return NotConvergedError(asked, found, remedy + ", or float64", partial)
