"""A checked solution, and what `solve` and `lstsq` share: their right-hand sides, tolerances and true residuals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from hesse.core import random
from hesse.core.errors import NonFiniteError
from hesse.core.tree import Tree
from hesse.linalg.answer import evaluated
from hesse.linalg.groups import row_groups
from hesse.linalg.options import rounding
from hesse.linalg.products import all_finite, apply, normal_vectors, row_norms, work_dtype
from hesse.operators import LinearOperator

Late: TypeAlias = float | Callable[[], float] | None
_ROUNDINGS = 4.0  # units of rounding that a product, taken relative to |A| |x|, may be off
_BACKWARD = 32  # units of rounding
_POWER_STEPS = 4


class Sizes(NamedTuple):
    """Norms for `error_bound`.

    Attributes:
        norm: of the (damped) operator, or close from below.
        inverse: the 2-norm of its (pseudo-)inverse.
        away: ``[k]``, for least squares: at least the distance of each solution from the range of ``A^H``. None for `solve`.
    """

    norm: float
    inverse: float
    away: Tensor | None


@dataclass(frozen=True, eq=False)
class Solution:
    """A solution with what is known of it.

    Attributes:
        value: the solution, a tree of `A.in_space` (batch axes of b in front).
        residual: ``|b - A x| / |b|`` with the true operator, the largest over the batch.
        iterations: steps of the iterative method; 0 for a direct one.
        method: ``"structure"`` or what the rule of the operator calls its way, ``"dense"``, ``"cholesky"``, ``"woodbury"``,
            ``"cg"``, ``"minres"`` or ``"lsmr"``.
        normal_residual: of `lstsq`: ``|A^H (b - A x) - c x| / (|A'| |r'|)`` with damping c, where A' and r' are the
            operator and the residual with the damping rows ``sqrt(c)``; the largest over the batch. Zero at
            the solution; as large as the smallest relative change of the operator for which x is exact (Stewart
            1977). None for `solve`.
        truncated: how many of the ``min(out, in)`` singular values were dropped; None where the method does not count them.
        known_condition, known_error: what `condition` and `forward_error` hand out: numbers, or functions that find them.
    """

    value: Tree
    residual: float
    iterations: int
    method: str
    normal_residual: float | None = None
    truncated: int | None = None
    known_condition: Late = field(default=None, repr=False)
    known_error: Late = field(default=None, repr=False)

    @cached_property
    def condition(self) -> float | None:
        """An estimate of the condition number, or None; found at the first access where it is costly.

        Matrices: in the 1-norm, least squares in the 2-norm of what was not cut off; iterative methods: a lower bound or
        estimate of that in the 2-norm, of the preconditioned or damped operator.
        """
        return evaluated(self.known_condition)

    @cached_property
    def forward_error(self) -> float | None:
        """A bound of ``|x - x_true| / |x|``, the largest over the batch, found at the first access (see `error_bound`).

        Here ``x_true`` is the exact solution for b and A as they are (of `lstsq` that of least norm), not what b was made from.
        Where singular values were dropped (`truncated`), it is that for A with these as zero, and says nothing of what they
        would have added. Infinite where nothing can be said.

        For conjugate gradients the norm of the inverse is bounded by Lanczos steps from a random vector (`definite_ends`). That
        holds but for a chance of 1e-4, and is infinite where these steps do not suffice: with a preconditioner that saves many
        of them, or a right-hand side that is solved in few. For MINRES and LSMR it is estimated by `hesse.condition`.

        Cost: a product or two where the method knows the norm of the inverse; for conjugate gradients at most 2 products for
        each of their steps and 33 more; else a condition number. For least squares with a null space one more problem, with
        ``A.H``.
        """
        return evaluated(self.known_error)

    def __getstate__(self) -> dict[str, Any]:
        """Everything that is known by now; what would have to be found with the operator is left out."""
        late = {name: getattr(self, name) for name in ("known_condition", "known_error")}
        found = {"known_condition": vars(self).get("condition"), "known_error": vars(self).get("forward_error")}
        return {**vars(self), **{name: found[name] if callable(value) else value for name, value in late.items()}}


def error_bound(A: LinearOperator, B: Tensor, X: Tensor, sizes: Sizes, *, damping: float = 0.0) -> float:
    """A bound of ``|x - x_true| / |x|`` for computed solutions x, the largest of the rows.

    With the true residual r (and its damping rows), ``x_true - x = A^+ r`` up to the part of x outside of the range of
    ``A^H``, and ``A^+ r = A^+ A^{+H} A^H r``, so that ``|x_true - x| <= |A^+| min(|r|, |A^+| |A^H r|) + |away|``. This is
    sharper than Wedin's bound (1973; Higham 2002, theorem 20.1) at the backward error ``|A^H r| / (|A| |r|)`` of Stewart, and
    holds for any rank. What rounding may hide of the residuals is added: a few units times ``|A| |x| + |b|``. Where singular
    values were truncated, ``A^+`` and its norm are those of A with these as zero, and so is ``x_true``.

    Args:
        A: the operator.
        B: right-hand sides ``[k, out]``.
        X: solutions ``[k, in]``.
        sizes: norms of A and its (pseudo-)inverse, and how far the rows are away from the range of ``A^H``.
        damping: of least squares.

    Returns:
        the bound; infinite where nothing can be said.

    Cost: a product with A, for least squares one with its adjoint.
    """
    if not X.numel():
        return 0.0
    groups = row_groups(A, B)
    if len(groups) > 1:
        away = sizes.away
        each = ((part, sizes if away is None else sizes._replace(away=away[part])) for part in groups)
        return max(error_bound(A, B[part], X[part], given, damping=damping) for part, given in each)
    unit, inverse, norm = _ROUNDINGS * rounding(A), sizes.inverse, sizes.norm
    R, root = B - apply(A, X), damping**0.5
    x, b, r = row_norms(X).double(), row_norms(B).double(), row_norms(R)
    missed = torch.hypot(r.double(), root * x)
    least = max(A.shape) ** 1.5 * torch.finfo(r.dtype).tiny * torch.finfo(r.dtype).eps  # what underflow may hide of a product
    unsure = unit * (norm * x + b) + least * (x > 0).to(x)
    miss, away = missed + unsure, torch.zeros_like(x)
    if sizes.away is not None:
        size = missed.to(r.dtype)  # the gradients of rows of norm one neither overflow nor underflow
        size = torch.where(size > 0, size, torch.ones_like(size))
        gradient = row_norms(apply(A.H, R / size[:, None]) - root * (root * X / size[:, None])).double()
        gradient += least * (missed > 0).to(x)
        rounded = norm * _times(inverse, unsure + unit * missed)
        miss = torch.minimum(miss, _times(inverse, gradient) * size.double() + rounded)
        away = sizes.away.double()
    off = _times(inverse, miss) + away
    bound = float(torch.where(off == 0, off, off / x + unit).max())
    return math.inf if math.isnan(bound) else bound


def _times(factor: float, sizes: Tensor) -> Tensor:
    return torch.where(sizes == 0, sizes, factor * sizes)  # infinity times zero is zero here


def norm_from_below(A: LinearOperator, damping: float = 0.0) -> float:
    """A lower bound of ``|A|`` with the damping rows, by a few steps of the power method."""
    v = normal_vectors(A.in_space, 1, random.make_generator())
    norm = torch.zeros(())
    for _ in range(_POWER_STEPS):
        size = row_norms(v)
        if not float(size):
            break
        image = apply(A, v / size[:, None])
        norm = row_norms(image)[0]
        v = apply(A.H, image / norm) if float(norm) else image.new_zeros(1, A.shape[1])
    return float(torch.hypot(norm.double(), torch.tensor(damping**0.5, dtype=torch.float64, device=norm.device)))


def backward_rounding(A: LinearOperator) -> float:
    """The backward error, relative to ``|A| |x| + |b|``, that a stable method may leave; 0 in 16 bits, where all would pass."""
    return _BACKWARD * rounding(A) if rounding(A) <= 1e-4 else 0.0


def default_rtol(A: LinearOperator) -> float:
    """1e-8, or the root of the rounding unit of the coarsest leaf dtype where that is larger."""
    eps = rounding(A)
    return 1e-8 if eps < 1e-15 else max(1e-8, eps**0.5)


def right_hand_sides(A: LinearOperator, b: Tree, question: str) -> tuple[Tensor, torch.Size]:
    """``[k, out]`` in the working dtype, and the batch axes that b had.

    Raises:
        StructureError: b is not in the space that A maps to.
        NonFiniteError: b has a NaN or an infinity.
    """
    parts = A.out_space.check(b, "the right-hand side", None)
    lead = parts[0].ndim - len(A.out_space.shapes[0]) if parts else 0
    batch = parts[0].shape[:lead] if parts else torch.Size()
    flat = A.out_space.ravel(A.out_space.rebuild(parts), lead).detach()
    if not all_finite(flat):
        raise NonFiniteError(f"{question} needs a finite right-hand side.", "NaN or infinity in b", "look where b comes from")
    return flat.reshape(batch.numel(), A.shape[0]).to(work_dtype(flat.dtype)), batch


def relative_residual(A: LinearOperator, B: Tensor, X: Tensor) -> float:
    """The largest ``|b - A x| / |b|``; 0 for b = 0 = A x.

    Raises:
        NonFiniteError: x is out of range.
    """
    require_in_range(X, B)
    return largest_ratio(row_norms(B - apply(A, X)), row_norms(B)) if B.numel() else 0.0


def require_in_range(X: Tensor, B: Tensor) -> None:
    """Raise `NonFiniteError` where the numbers of a solution are too large for its dtype."""
    if not all_finite(X):
        largest = torch.finfo(X.dtype).max
        raise NonFiniteError(
            f"A solution has to fit into {X.dtype}, whose largest number is {largest:.2g}.",
            f"NaN or infinity in x, for a right-hand side of norm {float(row_norms(B).max()):.2g}",
            "scale b down (x goes down with it) or A up, or use float64",
        )


def largest_residual(A: LinearOperator, B: Tensor, X: Tensor) -> float:
    """`relative_residual`, under a budget that the user has set so many rows at a time as fit."""
    return float(torch.tensor([relative_residual(A, B[part], X[part]) for part in row_groups(A, B)], dtype=torch.float64).max())


def largest_ratio(missed: Tensor, size: Tensor) -> float:
    """The largest ``missed / size``, where 0 / 0 is 0."""
    return float(torch.where(missed == 0, missed, missed / size).max()) if missed.numel() else 0.0
