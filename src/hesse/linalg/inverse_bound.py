"""A bound of the norm of the inverse of a positive definite operator, from a few Lanczos steps of a random vector.

After k steps the residual of conjugate gradients with the right-hand side g is ``p(A) g``, where
``p(t) = prod_j (1 - t / theta_j)`` over the Ritz values theta_j. If g has at least the component c along the eigenvector of the
least eigenvalue, then ``p(lambda_min) c <= |p(A) g|``; and p falls from 1 to 0 between 0 and the least theta, so that
lambda_min lies above the place where it takes the value ``|p(A) g| / c``. For a random g such a c is known but for a small
chance. (Van Dorsselaer, Hochstenbach and van der Vorst, SIAM J. Matrix Anal. Appl. 22, 2000, bound the largest eigenvalue by
the Lanczos polynomial in this way; the chance of c as in Dixon, SIAM J. Numer. Anal. 20, 1983.)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hesse.core import random
from hesse.core.progress import track
from hesse.linalg.exponents import near_one, times
from hesse.linalg.options import rounding
from hesse.linalg.products import apply, beside, normal_vectors, row_norms
from hesse.linalg.symmetry import inner
from hesse.operators import LinearOperator

_SEED = 1952  # not one that a right-hand side may have been drawn with
_CHANCE = 1e-4
_ROUNDINGS = 4.0  # units of rounding that a product, taken relative to the norm, may be off
_FIRST, _MORE = 8, 1.3  # steps before the first look, and times as many before the next
_HALVINGS = 60
_VECTORS = 4


class Ends(NamedTuple):
    """What is known of a positive definite operator.

    Attributes:
        norm: of the operator, from below; close to it where `inverse` is finite.
        inverse: at least the norm of the inverse, but for a chance of 1e-4; infinite where nothing can be said.
        products: that were taken.
    """

    norm: float
    inverse: float
    products: int


def definite_ends(A: LinearOperator, most: int) -> Ends:
    """Bounds of the extreme eigenvalues of a Hermitian positive definite operator.

    Args:
        A: tagged Hermitian.
        most: products that may be taken. It ends before that where the bound of the inverse is within a factor of two.

    Cost: `most` products at most, about as many as conjugate gradients take to a residual of ``1e-4 / sqrt(dim)``; 4 vectors.
    """
    if not A.shape[0]:
        return Ends(0.0, 0.0, 0)
    v = normal_vectors(A.in_space, 1, random.make_generator(_SEED))
    with beside(A, _VECTORS * v.nbytes):
        return _walked(A, v / row_norms(v), min(most, 100 * A.shape[0]))


def _walked(A: LinearOperator, v: Tensor, most: int) -> Ends:
    """From the Lanczos recursion that starts at v, ``[1, dim]``, of norm one."""
    before, beta, look, power = v.new_zeros(v.shape), 0.0, _FIRST, 0.0
    alphas: list[float] = []
    betas: list[float] = []
    norm, inverse = 0.0, math.inf
    for step in track(range(1, most + 1), "bound of the error", most):
        w = apply(A, v).to(v.dtype)
        power = power or near_one(w, v)
        w = times(w, power).sub(before, alpha=beta)  # not in place: the operator may have given v back
        alpha = float(inner(v, w))
        w.sub_(v, alpha=alpha)
        beta = float(row_norms(w))
        alphas.append(alpha)
        betas.append(beta)
        is_last = beta <= rounding(A) * max(map(abs, alphas)) or step == most
        if step >= look or is_last:
            look = math.ceil(_MORE * step)
            norm, least, is_close = _read(np.array(alphas), np.array(betas), A.shape[0])
            least -= _ROUNDINGS * rounding(A) * norm
            inverse = 1 / least if least > 0 else math.inf
            if is_close or is_last:
                break
        before, v = v, w / beta
    return Ends(norm / power, inverse * power, len(alphas))


def _read(alphas: NDArray[np.float64], betas: NDArray[np.float64], dim: int) -> tuple[float, float, bool]:
    """The largest Ritz value, a lower bound of the least eigenvalue (0: none), and whether that is within a factor of two."""
    from scipy.linalg import eigvalsh_tridiagonal

    ritz = eigvalsh_tridiagonal(alphas, betas[:-1], lapack_driver="sterf")
    if ritz[0] <= 0:
        return float(np.abs(ritz).max()), 0.0, True
    with np.errstate(divide="ignore"):
        residual = float(np.log(betas).sum() - np.log(ritz).sum())  # of conjugate gradients: |p(A) g|
    goal = residual + 0.5 * math.log(dim) - math.log(_CHANCE)
    if goal >= 0:
        return float(ritz[-1]), 0.0, False
    low, high = 0.0, float(ritz[0])
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if middle < ritz[0] and np.log1p(-middle / ritz).sum() >= goal else (low, middle)
    return float(ritz[-1]), low, low >= 0.5 * float(ritz[0])
