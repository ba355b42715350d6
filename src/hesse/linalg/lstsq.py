"""Least squares with any operator; never without a certificate."""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor

from hesse.core.errors import NotConvergedError, StructureError
from hesse.core.tree import Tree
from hesse.linalg.answer import Answer, evaluated, lstsq_matrix
from hesse.linalg.condition import inverse_from
from hesse.linalg.dense import matrix_for
from hesse.linalg.differentiable_rules import differentiable_solution
from hesse.linalg.groups import DAMPED, LSMR, in_groups, row_groups
from hesse.linalg.lsmr import lsmr
from hesse.linalg.lstsq_rules import lstsq_rule
from hesse.linalg.options import ON_FAILURE, check_choice, check_positive, conclude, rounding
from hesse.linalg.products import apply, row_norms
from hesse.linalg.solution import (
    Sizes,
    Solution,
    backward_rounding,
    default_rtol,
    error_bound,
    largest_ratio,
    norm_from_below,
    require_in_range,
    right_hand_sides,
)
from hesse.operators import LinearOperator
from hesse.operators.spread import asked_together

_METHODS = ("auto", "dense", "lsmr")
_COPIES = 8  # of a matrix, while its singular vectors are computed
_DENSE_DIM, _DENSE_SIZE = 1000, 2**23
_UNSURE = 4.0  # units of rounding that a product may be off


@asked_together
def lstsq(
    A: LinearOperator,
    b: Tree,
    *,
    method: str = "auto",
    damping: float = 0.0,
    rtol: float | None = None,
    max_iterations: int | None = None,
    on_failure: str = "raise",
    full: bool = False,
) -> Any:
    """The x that minimizes ``|b - A x|^2 + damping |x|^2``; without damping the shortest of them.

    Args:
        A: any operator, rectangular or rank-deficient ones too.
        b: a tree of `A.out_space`; batch axes in front of every leaf are allowed.
        method: ``"dense"``: singular values of the matrix; without damping those below ``eps max(out, in)`` times the largest
            count as zero, for x and for the bound of its error (`Solution.truncated` counts them). ``"lsmr"``: LSMR.
            ``"auto"``: by the structure (diagonal, dense, Kronecker, block-diagonal, low rank, scaled) where there is one; else
            dense if the smaller side is at most 1000 and the matrix has at most 2^23 entries; else LSMR.
        damping: of Tikhonov (ridge), not negative: x solves ``(A^H A + damping I) x = A^H b``.
        rtol: x is accepted if ``|r| <= rtol |b|``, or if ``|A^H r| <= rtol |A| |r|``, where r is the residual; with
            damping, r and A have the further rows ``sqrt(damping)`` (see `Solution.normal_residual`). By default 1e-8,
            or the root of the rounding unit of the coarsest leaf dtype where that is larger. Also if ``A^H r`` is
            nothing but rounding: at most 32 units of it times ``|A| (|A| |x| + |b|)``, for large x that nearly solve.
        max_iterations: of LSMR; by default ``10 min(out, in)``, at least 100 and at most 10000.
        on_failure: ``"raise"``, or ``"return"`` what was reached, with a warning.
        full: return a `Solution` instead of its value; a value alone has derivatives for convolutions, else it is a number.

    Raises:
        StructureError: `b` is not in the space, damping is negative, no such method, or the transpose of `A` is wrong.
        UnsupportedError: within a transform of `torch.func`, where derivatives would silently be zero.
        NotConvergedError: neither certificate holds; carries the `Solution` reached. MemoryBudgetError: one row does not fit.
        NonFiniteError: b or a product has a NaN or an infinity, or x is out of the range of its dtype.

    Cost: dense: ``min(out, in)`` products, in blocks. LSMR: a product with A and one with its adjoint a step, about
    ``condition`` steps (of the damped operator), a batch in one block. One more of each for the certificate.
    """
    check_choice("lstsq", "method", method, _METHODS)
    check_choice("lstsq", "on_failure", on_failure, ON_FAILURE)
    check_positive("lstsq", rtol=rtol, max_iterations=max_iterations)
    if not 0 <= damping < float("inf"):
        raise StructureError("lstsq needs damping >= 0.", f"damping={damping}", "pass a number that is not negative")
    if method == "auto" and not full and not damping and (known := differentiable_solution(A, b, "lstsq")) is not None:
        return known
    rtol = default_rtol(A) if rtol is None else rtol
    steps = min(max(10 * min(A.shape), 100), 10_000) if max_iterations is None else max_iterations
    B, batch = right_hand_sides(A, b, "lstsq")
    used, answer = _answer(A, B, method, damping, (rtol, steps))
    result, is_good = _certified(A, B, answer, (damping, rtol))
    if not is_good and answer.trouble and used == "structure":  # the rule has said itself that it did not get there
        used, answer = _answer(A, B, _general_method(A), damping, (rtol, steps))
        result, is_good = _certified(A, B, answer, (damping, rtol))
    value = A.in_space.unravel(answer.value.reshape(*batch, A.shape[1]))
    error = answer.forward_error or (lambda: _error(A, B, answer, used, (damping, rtol, steps)))
    told = (result[0], answer.iterations, answer.method or used, result[1], answer.truncated, answer.condition)
    result = Solution(value, *told, error)
    if not is_good:
        conclude(_failure(result, rtol, damping, answer), on_failure)
    return result if full else value


def _error(A: LinearOperator, B: Tensor, answer: Answer, method: str, options: tuple[float, float, int]) -> float:
    """A bound of the relative error; with truncated singular values for A with these as zero.

    Its part outside of the range of ``A^H`` is at most as long as what is left of x by any vector ``A^H w``.
    """
    damping, rtol, steps = options
    X = answer.value
    norm = norm_from_below(A, damping) if answer.norm is None else answer.norm
    inverse = evaluated(answer.inverse_norm)
    if inverse is None and damping and method == "lsmr":
        inverse = damping**-0.5
    if inverse is None:
        inverse = inverse_from(A, None if method == "lsmr" else evaluated(answer.condition), norm)
    away = torch.zeros(len(X), dtype=torch.float64, device=X.device)
    has_trivial_null_space = A.shape[1] <= A.shape[0] and (answer.truncated == 0 or (method == "lsmr" and inverse < inf))
    if not (damping or has_trivial_null_space) and X.numel():
        W = _answer(A.H, X, "auto", 0.0, (rtol, steps))[1].value
        unsure = _UNSURE * rounding(A) * (row_norms(X) + norm * row_norms(W))
        away = (row_norms(X - apply(A.H, W)) + unsure).double()
    return error_bound(A, B, X, Sizes(norm, inverse, away), damping=damping)


def _answer(A: LinearOperator, B: Tensor, method: str, damping: float, limits: tuple[float, int]) -> tuple[str, Answer]:
    if method == "auto":
        found = lstsq_rule(A, B, damping, lambda part, rows, c: _answer(part, rows, "auto", c, limits)[1])
        if found is not None:
            return "structure", found
        method = _general_method(A)
    if method == "dense":
        return method, lstsq_matrix(matrix_for(A, "the least squares", _COPIES), B, damping)
    held = DAMPED if damping else LSMR
    return method, in_groups(A, B, lambda R: lsmr(A, R, limits[0], limits[1], damping=damping), held)


def _general_method(A: LinearOperator) -> str:
    out, into = A.shape
    return "dense" if min(out, into) <= _DENSE_DIM and out * into <= _DENSE_SIZE else "lsmr"


def _certified(A: LinearOperator, B: Tensor, answer: Answer, options: tuple[float, float]) -> tuple[tuple[float, float], bool]:
    """Relative residual and normal residual (largest over the batch), and whether each row meets one of the tolerances."""
    if not B.numel() or not A.shape[1]:
        return (largest_ratio(row_norms(B), row_norms(B)), 0.0), True
    norm = norm_from_below(A, options[0]) if answer.norm is None else answer.norm
    looks = [_looked_at(A, B[part], answer.value[part], norm, options) for part in row_groups(A, B)]
    residual, normal = torch.tensor([sizes for sizes, _ in looks], dtype=torch.float64).amax(0).tolist()
    return (residual, normal), all(is_good for _, is_good in looks)


def _looked_at(
    A: LinearOperator, B: Tensor, X: Tensor, norm: float, options: tuple[float, float]
) -> tuple[tuple[float, float], bool]:
    """`_certified` for some of the rows."""
    damping, rtol = options
    require_in_range(X, B)
    missing = B - apply(A, X)
    missed, size = row_norms(missing), row_norms(B)
    whole = torch.hypot(missed, damping**0.5 * row_norms(X))
    # of rows of norm one, so that squares of tiny ones do not underflow
    unit = torch.where(whole > 0, whole, torch.ones_like(whole))[:, None]
    gradient = row_norms(apply(A.H, missing / unit) - damping**0.5 * (damping**0.5 * X / unit))
    normal = torch.where(gradient == 0, gradient, gradient / norm)
    noise = backward_rounding(A) * (norm * row_norms(X) + size)
    is_good = bool(((whole <= rtol * size) | (normal <= rtol) | (normal * whole <= noise)).all())
    return (largest_ratio(missed, size), float(normal.max())), is_good


def _failure(partial: Solution, rtol: float, damping: float, answer: Answer) -> NotConvergedError:
    found = f"a normal residual of {partial.normal_residual:.2g} after {partial.iterations} iterations"
    if answer.trouble:
        found += f"; {answer.trouble}"
    if isinstance(answer.condition, float):
        found += f"; condition number about {answer.condition:.1g}"
    remedy = f"{'raise' if damping else 'add'} damping=, which lowers the condition number"
    if partial.method == "lsmr":
        remedy += ", allow more max_iterations, use method='dense'"
    return NotConvergedError(
        f"lstsq by {partial.method} did not reach rtol={rtol:.2g}.", found, remedy + ", or float64", partial
    )
