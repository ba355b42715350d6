"""Some singular triplets of any operator, each with its residuals."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hesse.core import random
from hesse.core.errors import NotConvergedError, StructureError
from hesse.core.memory import Budget
from hesse.core.tree import Tree
from hesse.linalg.dense import matrix_for, matrix_has_room
from hesse.linalg.options import ON_FAILURE, check_choice, check_positive, conclude, rounding
from hesse.linalg.products import apply, real_dtype
from hesse.linalg.quadrature_question import matrix_fits
from hesse.linalg.svd_krylov import SingularSearch
from hesse.linalg.svd_rules import Triplets, matrix_triplets, svd_rule
from hesse.operators import LinearOperator
from hesse.operators.spread import asked_together

_METHODS = ("auto", "exact", "lanczos")
_DENSE_DIM = 256
_COPIES = 8  # of a matrix, while its singular vectors are computed
_SWITCH_DIM = 2000  # up to here the matrix is affordable when Lanczos has a hard time


@dataclass(frozen=True, eq=False)
class Svd:
    """Singular triplets: ``A v = value u`` and ``A^H u = value v``.

    Attributes:
        U: a tree of `A.out_space` with a leading axis k; orthonormal.
        values: ``[k]``, real, not negative; the most wanted first.
        V: a tree of `A.in_space` with a leading axis k; orthonormal.
        residuals: ``[k]``: the larger of ``|A v - value u|`` and ``|A^H u - value v|``, from fresh products; a singular
            value lies within this distance.
        products: products with the operator or its adjoint that were spent.
    """

    U: Tree = field(repr=False)
    values: Tensor
    V: Tree = field(repr=False)
    residuals: Tensor
    products: int


@asked_together
def svd(  # noqa: PLR0913 - which triplets, by which method, how exactly, and within which limits
    A: LinearOperator,
    k: int = 6,
    *,
    which: str = "largest",
    method: str = "auto",
    rtol: float | None = None,
    max_products: int | None = None,
    generator: torch.Generator | None = None,
    on_failure: str = "raise",
    memory: Budget | None = None,
) -> Svd:
    """The `k` largest or smallest singular values of any operator, with their vectors.

    All work is done on the operator's device and in its dtype (16-bit ones in float32).

    Args:
        A: any operator, square or not.
        k: how many triplets, at most the smaller dimension.
        which: ``"largest"`` (descending) or ``"smallest"`` (ascending).
        method: ``"exact"``: by the dense matrix. ``"lanczos"``: block Lanczos with thick restarts (see `eigsh`) on ``A^H A``
            or ``A A^H``, whichever is smaller; where squaring has lost too many digits of the largest ones, again on the
            Hermitian operator ``[[0, A], [A^H, 0]]``. ``"auto"``: by the structure where it knows the answer, by the matrix
            up to dimension 256 (the smaller one), or up to 2000 where Lanczos would take more products; else Lanczos.
        rtol: largest residual allowed, as a fraction of the spectral norm of `A`; by default 1e-6, or 32 roundings of the
            coarsest leaf dtype where that is larger (8 for 16-bit ones).
        max_products: products that may be spent; by default ``4000 + 200 k``.
        generator: source of the random starting block.
        on_failure: ``"raise"``, or ``"return"`` what was reached, with a warning.
        memory: budget for the matrix: bytes, fraction or text; by default the one in force.

    Raises:
        StructureError: `k` is not between 1 and the smaller dimension, or there is no such option.
        NotConvergedError: the residuals are larger than asked for; carries the `Svd` reached.

    Cost: exact: ``min(out, in)`` products; Lanczos: two products a step, about a hundred where singular values decay,
    many more for the smallest.
    """
    check_choice("svd", "which", which, ("largest", "smallest"))
    check_choice("svd", "method", method, _METHODS)
    check_choice("svd", "on_failure", on_failure, ON_FAILURE)
    check_positive("svd", rtol=rtol, max_products=max_products)
    least = min(A.shape)
    if not 1 <= k <= least:
        asked = "svd needs 1 <= k <= the smaller dimension."
        raise StructureError(asked, f"k={k} for shape {A.shape}", "ask for fewer triplets")
    eps = rounding(A)
    rtol = max(1e-6, (32 if eps < 1e-4 else 8) * eps) if rtol is None else rtol
    budget = 4000 + 200 * k if max_products is None else max_products
    known = svd_rule(A, k, which) if method == "auto" else None
    if known is not None:
        top = known if which == "largest" else svd_rule(A, 1, "largest")
        scale = float(top.values.max()) if top is not None else float(known.values.max())
        result = _certified(A, known, 0)
    else:
        result, scale = _unstructured(A, k, which, method, (rtol, budget), generator or random.make_generator(), memory)
    _require_small(result, scale, rtol, eps, on_failure)
    return result


def _require_small(result: Svd, scale: float, rtol: float, eps: float, on_failure: str) -> None:
    largest, allowed = float(result.residuals.max()), (rtol + 4 * eps) * scale
    if largest <= allowed:
        return
    asked = f"The {len(result.values)} singular triplets were not found to rtol={rtol:.2g}."
    text = f"residuals up to {largest:.2g} (allowed: {allowed:.2g}) after {result.products} products"
    remedy = "raise max_products or rtol, use float64, or method='exact'; check A.H with hesse.assert_operator"
    conclude(NotConvergedError(asked, text, remedy, result), on_failure)


def _unstructured(
    A: LinearOperator,
    k: int,
    which: str,
    method: str,
    goal: tuple[float, int],
    generator: torch.Generator,
    memory: Budget | None,
) -> tuple[Svd, float]:
    """The triplets with their residuals, and the spectral norm."""
    (rtol, budget), least = goal, min(A.shape)
    fits = matrix_has_room(A, _COPIES, memory)
    if method == "exact" or (method == "auto" and least <= max(_DENSE_DIM, 4 * k) and fits):
        return _by_matrix(A, k, which, memory, 0)
    may_switch = fits and method == "auto" and least <= _SWITCH_DIM and 3 * least <= budget and matrix_fits(A, memory)
    search = SingularSearch(A, k, which, rtol, generator)
    found = search.run(2 * least if may_switch else budget)
    result = _certified(A, found, search.products)
    if may_switch and float(result.residuals.max()) > (rtol + 4 * rounding(A)) * search.scale:
        return _by_matrix(A, k, which, memory, result.products)
    return result, search.scale


def _by_matrix(A: LinearOperator, k: int, which: str, memory: Budget | None, spent: int) -> tuple[Svd, float]:
    matrix = matrix_for(A, "the singular vectors", _COPIES, memory)
    found = matrix_triplets(matrix, k, which)
    scale = float(found.values[0]) if which == "largest" else float(torch.linalg.matrix_norm(matrix.to(found.U.dtype), 2))
    return _certified(A, found, spent + min(A.shape)), scale


def _certified(A: LinearOperator, found: Triplets, spent: int) -> Svd:
    """The triplets with residuals from fresh products of the vectors that are handed out."""
    U, V = found.U, found.V
    values = found.values.to(device=U.device, dtype=real_dtype(U.dtype))
    right = torch.linalg.vector_norm(apply(A, V) - values[:, None] * U, dim=-1)
    left = torch.linalg.vector_norm(apply(A.H, U) - values[:, None] * V, dim=-1)
    residuals = torch.maximum(left, right.to(left.device))
    return Svd(A.out_space.unravel(U), values, A.in_space.unravel(V), residuals, spent + 2 * len(values))
