"""The 2-norm condition number of an operator."""

from __future__ import annotations

import math
from functools import singledispatch

import torch

from hesse.core import random
from hesse.core.errors import NotConvergedError
from hesse.core.memory import Budget
from hesse.linalg.dense import matrix_for
from hesse.linalg.eigen import Eigen, eigsh
from hesse.linalg.eigenvalues import Eigenvalues, eigenvalues_rule
from hesse.linalg.estimate import Estimate
from hesse.linalg.options import ON_FAILURE, check_choice, check_positive, conclude, is_hermitian, rounding
from hesse.linalg.products import apply, work_dtype
from hesse.linalg.quadrature_question import matrix_fits
from hesse.operators import Congruence, Dense, Kronecker, LinearOperator, Scaled
from hesse.operators.spread import asked_together

_METHODS = ("auto", "exact", "lanczos")
_EXACT_DIM = 512
_SWITCH_DIM = 2000
_FIRST_RTOL = 1e-4


@asked_together
def condition(
    A: LinearOperator,
    *,
    method: str = "auto",
    rtol: float = 0.01,
    generator: torch.Generator | None = None,
    max_products: int = 10_000,
    on_failure: str = "raise",
    memory: Budget | None = None,
) -> Estimate:
    """The condition number in the 2-norm: the largest singular value over the smallest.

    Args:
        A: any operator; of a rectangular one the smaller dimension counts.
        method: ``"exact"``: by the structure, or all singular values of the dense matrix. ``"lanczos"``: from the extreme
            eigenvalues of `A` where it is Hermitian and definite, else of ``A^H A`` or ``A A^H``, whichever is smaller.
            ``"auto"``: exact where the structure knows it, where the smaller dimension is at most 512, or (up to 2000) where
            Lanczos does not get there; else Lanczos.
        rtol: the residuals of the extreme eigenvalues may move the result by this fraction.
        generator: source of the random starting blocks.
        max_products: products that Lanczos may take.
        on_failure: ``"raise"``, or ``"return"`` what was reached, with a warning.
        memory: budget for the matrix: bytes, fraction or text; by default the one in force.

    Returns:
        an `Estimate`, which works as a float: infinite where `A` is singular to working precision (its smallest singular
        value is below the larger dimension times the rounding unit times its largest). From Lanczos, `standard_error` is
        how far the residuals may move it.

    Raises:
        StructureError: no such method.
        NotConvergedError: the tolerance was not reached; carries the estimate, which is then from below. Through ``A^H A``
            condition numbers beyond the inverse root of the rounding unit cannot be told from infinite ones.

    Cost: exact: ``min(out, in)`` products, or none where the structure is known. Lanczos: about ``sqrt(condition)`` steps
    times a small number.
    """
    check_choice("condition", "method", method, _METHODS)
    check_choice("condition", "on_failure", on_failure, ON_FAILURE)
    check_positive("condition", rtol=rtol, max_products=max_products)
    least = min(A.shape)
    if least == 0:
        return Estimate(1.0)
    if method != "lanczos":
        known = condition_rule(A)
        if known is not None:
            return Estimate(known)
        if method == "exact" or (least <= _EXACT_DIM and matrix_fits(A, memory)):
            return Estimate(_of_matrix(A, memory), 0.0, least)
    may_switch = method == "auto" and least <= _SWITCH_DIM and matrix_fits(A, memory)
    budget = min(max_products, 2 * least) if may_switch else max_products
    result, converged = _Search(A, rtol, budget, generator or random.make_generator()).run()
    if not converged and may_switch:
        return Estimate(_of_matrix(A, memory), 0.0, result.products + least)
    if not converged:
        asked = f"The condition number was not found to rtol={rtol}."
        remedy = "raise max_products or rtol, use float64, add damping, or use method='exact'"
        conclude(NotConvergedError(asked, f"at least about {result!r}", remedy, result), on_failure)
    return result


def inverse_from(A: LinearOperator, known: float | None, norm: float) -> float:
    """The 2-norm of the (pseudo-)inverse from the condition number, which is found if need be; infinite where it cannot be.

    Args:
        A: the operator.
        known: its condition number, if somebody knows it.
        norm: its 2-norm, or a little less.
    """
    if not norm:
        return 0.0
    if known is None:
        try:
            known = float(condition(A))
        except NotConvergedError:
            known = math.inf
    return known / norm


def _ratio(largest: float, smallest: float, noise: float) -> float:
    return math.inf if smallest <= noise else largest / smallest


def _of_matrix(A: LinearOperator, memory: Budget | None) -> float:
    matrix = matrix_for(A, "the singular values", 3, memory).detach()
    sizes = torch.linalg.svdvals(matrix.to(work_dtype(matrix.dtype)))
    largest = float(sizes[0])
    return _ratio(largest, float(sizes[-1]), max(A.shape) * rounding(A) * largest)


@singledispatch
def condition_rule(A: LinearOperator) -> float | None:
    """The open rule behind `condition`: a number, or None where no structure knows it.

    Register more with ``@condition_rule.register(MyOperator)``.
    """
    known = eigenvalues_rule(A) if is_hermitian(A) else None
    return None if known is None else _of_spectrum(known)


def _of_spectrum(known: Eigenvalues) -> float:
    sizes = known.values.abs()
    return _ratio(float(sizes.max()), float(sizes.min()), known.noise) if sizes.numel() else 1.0


@condition_rule.register(Dense)
def _dense(A: Dense) -> float:
    return _of_matrix(A, None)


@condition_rule.register(Scaled)
def _scaled(A: Scaled) -> float | None:
    return condition_rule(A.operator) if complex(A.factor) else math.inf


@condition_rule.register(Kronecker)
def _kronecker(A: Kronecker) -> float | None:
    if min(A.left.shape) * min(A.right.shape) < min(A.shape):
        return math.inf  # a tall factor and a wide one: the product is rank deficient
    return _of_matrix(Dense(A.left), None) * _of_matrix(Dense(A.right), None)


class _Search:
    """Extreme eigenvalues of `A` or of its Gram operator, ever more exactly until their ratio is known."""

    def __init__(self, A: LinearOperator, rtol: float, budget: int, generator: torch.Generator) -> None:
        self.A, self.rtol, self.budget, self.generator = A, rtol, budget, generator
        self.products, self.vector = 0, torch.zeros(0)

    def run(self) -> tuple[Estimate, bool]:
        """The condition number, and whether it is known to the tolerance."""
        if is_hermitian(self.A) and self.A.in_space == self.A.out_space:
            (top, top_error), (low, low_error) = (self._end(self.A, which, _FIRST_RTOL) for which in ("largest", "smallest"))
            if low > 0 or top < 0 or min(abs(low), abs(top)) <= low_error + top_error:  # definite, or nearly singular
                return self._refined(self.A, 1, "smallest" if abs(low) <= abs(top) else "largest")
        gram = Congruence(self.A if self.A.shape[1] <= self.A.shape[0] else self.A.H)
        return self._refined(gram, 2, "smallest")

    def _refined(self, H: LinearOperator, power: int, small_end: str) -> tuple[Estimate, bool]:
        """From the ends of a semi-definite operator, whose eigenvalues are singular values to this power."""
        eps, size = rounding(self.A), max(self.A.shape)
        top, top_error = self._end(H, "largest" if small_end == "smallest" else "smallest", _FIRST_RTOL * self.rtol)
        top, goal, noise = abs(top), _FIRST_RTOL, size * eps * abs(top)
        if not top:
            return Estimate(math.inf, 0.0, self.products), True
        while True:
            low, low_error = self._end(H, small_end, goal)
            low = low if small_end == "smallest" else -low
            if self._image_size(H, power, low + low_error) <= size * eps * top ** (1 / power):
                return Estimate(math.inf, 0.0, self.products), True
            share = (low_error / (low - low_error) if low - low_error > noise else math.inf) + top_error / top
            value = (top / max(low, noise)) ** (1 / power)
            result = Estimate(value, value * share / power, self.products)
            if share / power <= self.rtol:
                return result, True
            if self.products >= self.budget or goal <= 4 * eps:
                return result, False
            goal = max(min(0.25 * self.rtol * power * max(low, noise) / top, goal / 10), 4 * eps)

    def _image_size(self, H: LinearOperator, power: int, bound: float) -> float:
        """An upper bound of the smallest singular value; not from a square, which loses half of the digits."""
        if power == 1 or not isinstance(H, Congruence):
            return max(bound, 0.0)
        self.products += 1
        return float(torch.linalg.vector_norm(apply(H.outer, self.vector)))

    def _end(self, H: LinearOperator, which: str, rtol: float) -> tuple[float, float]:
        """The eigenvalue at one end, and its residual."""
        cost = 1 if H is self.A else 2
        left = max((self.budget - self.products) // cost, 1)
        found = _quiet_eigsh(H, which, rtol, left, self.generator)
        self.products += cost * found.products
        self.vector = H.in_space.ravel(found.vectors, 1)
        return float(found.values[0]), float(found.residuals[0])


def _quiet_eigsh(H: LinearOperator, which: str, rtol: float, budget: int, generator: torch.Generator) -> Eigen:
    try:
        return eigsh(H, 1, which=which, method="lanczos", rtol=rtol, max_products=budget, generator=generator)
    except NotConvergedError as error:
        if not isinstance(error.partial, Eigen):  # of a product, which needs a solution itself
            raise
        return error.partial
