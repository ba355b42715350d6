"""The norm of an inverse and the condition number: one search, kept by the inverse for all that ask."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hesse.convolutions.certificate import COUNTED
from hesse.convolutions.inverse import Inverse
from hesse.convolutions.ladder import Laddered
from hesse.convolutions.small import group_matrices
from hesse.convolutions.truncation import factor_dtype
from hesse.core import random
from hesse.core.memory import current_budget

_DENSE_WORK, _COPIES = 2 * 10**9, 4  # operations and matrices of a decomposition that is sooner done than a search
_CLOSE, _ROUGH = 0.99, 1 / 1.1  # fractions of the norm that are to be found
_UNLIKELY = 1e-3
_CONVERGED = 1e-3  # residual, relative to the norm, at which the rest is far below the fractions
_FEWEST, _NOISE = 4, 4


def inverse_norm(inverse: Inverse) -> float:
    """``|A⁺|``: one over the smallest singular value that is kept; 0 if none is.

    By the singular values of the matrix where it is small (1250 x 1250, or as much work in groups), else by Lanczos' method, to
    1 % (see `searched`). Infinite if a Krylov method does not converge.

    Cost: nothing where all singular values are known, nor at the second time; else those of the matrix, or at most about fifty
    pairs of solutions, fewer where the smallest singular values are apart.
    """
    smallest = extremes(inverse)[1]
    return 1 / smallest if smallest else math.inf


def inverse_norm_bound(inverse: Inverse) -> float:
    """``|A⁺|`` or up to a tenth more: 1.1 times what a short search finds, or what is known exactly.

    The bound fails with a probability of 0.001 for the worst of spectra (see `searched`), and then by a few per cent.

    Cost: as of `inverse_norm`, but at most about twenty pairs of solutions.
    """
    way = _way(inverse)
    if way.extremes is not None or way.method in COUNTED or _is_small(way):
        return inverse_norm(way) / _CLOSE if way.is_searched else inverse_norm(way)
    if way.bound is None:
        norm, converged = searched(way, _ROUGH)
        if converged:
            _keep(way, norm)
            return inverse_norm_bound(way)
        way.bound = norm / _ROUGH
    return way.bound


def condition_of(inverse: Inverse) -> float:
    """The largest singular value over the smallest that is kept; 1 if none is.

    Cost: as of `inverse_norm`.
    """
    largest, smallest = extremes(inverse)
    if not largest or smallest == math.inf:
        return 1.0
    return max(1.0, largest / smallest) if smallest else math.inf


def extremes(inverse: Inverse) -> tuple[float, float]:
    """The largest singular value, and the smallest that is kept (infinite if none is); see `inverse_norm`."""
    way = _way(inverse)
    if way.extremes is not None:
        return way.extremes
    largest = way.norm()
    if not largest:
        found = (0.0, math.inf)
    elif way.method in COUNTED:
        found = (largest, largest / way.condition())
    elif _is_small(way):
        found = _of_matrix(way)
    else:
        return _keep(way, searched(way, _CLOSE)[0])
    way.extremes = found
    return found


def searched(way: Inverse, fraction: float) -> tuple[float, bool]:
    """``|A⁺|`` from below by Golub-Kahan bidiagonalization, which is Lanczos' method with ``A⁺ᴴ A⁺``, and whether it converged.

    From a random start, k steps find less than ``1 - e`` of the largest of n eigenvalues with a probability of at most
    ``1.648 sqrt(n) exp(-sqrt(e) (2 k - 1))``, whatever the spectrum (Kuczynski and Wozniakowski 1992, theorem 4.2). As many are
    taken as make this 0.001; fewer if the residual of the singular triplet is below 0.001 of its value.

    Args:
        way: what applies ``A⁺``.
        fraction: of ``|A⁺|`` that is to be found.
    """
    g, weight = way.convolution.geometry, way.convolution.weight
    flipped = g.out_dim > g.in_dim  # the vectors that are kept are on the shorter side
    shape = g.in_shape if flipped else g.out_shape
    dim = math.prod(shape)
    most = min(_steps(dim * (2 if weight.is_complex() else 1), fraction), dim)
    v = random.normal((1, *shape), weight.dtype, weight.device, random.make_generator())
    v = v / torch.linalg.vector_norm(v)
    basis, diagonal, above = [v.flatten()], list[float](), list[float]()
    u = None
    while True:
        image = _applied(way, basis[-1].reshape(1, *shape), flipped)
        if image is None:
            return math.inf, True
        u = image if u is None else image - above[-1] * u
        diagonal.append(float(torch.linalg.vector_norm(u)))
        u = u / (diagonal[-1] or 1.0)
        back = _applied(way, u, not flipped)
        if back is None:
            return math.inf, True
        w = back.flatten()
        known = torch.stack(basis)
        for _ in range(2):
            w = w - known.mT @ (known.conj() @ w)
        above.append(float(torch.linalg.vector_norm(w)))
        norm, residual = _largest(diagonal, above)
        is_exhausted = above[-1] <= _NOISE * torch.finfo(weight.dtype).eps * norm
        converged = is_exhausted or (residual <= _CONVERGED * norm and len(basis) >= _FEWEST)
        if converged or len(basis) >= most:
            return norm, converged
        basis.append(w / above[-1])


def _largest(diagonal: list[float], above: list[float]) -> tuple[float, float]:
    """The largest singular value of the bidiagonal matrix, and the residual of its triplet."""
    B = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    B += torch.diag(torch.tensor(above[:-1], dtype=torch.float64), 1)
    U, values, _ = torch.linalg.svd(B)
    return float(values[0]), above[-1] * abs(float(U[-1, 0]))


def _steps(dim: int, fraction: float) -> int:
    missing = 1 - fraction**2  # of the eigenvalue, the square
    return math.ceil((math.log(1.648 * dim**0.5 / _UNLIKELY) / missing**0.5 + 1) / 2)


def _applied(way: Inverse, Y: Tensor, adjoint: bool) -> Tensor | None:
    """None where a Krylov method finds no solution; its rough ones would miss what is long."""
    found = way.apply(Y, adjoint=adjoint)
    is_good = not found.trouble and bool(torch.isfinite(found.value).all())
    return found.value if is_good else None


def _way(inverse: Inverse) -> Inverse:
    return inverse.current if isinstance(inverse, Laddered) else inverse


def _keep(way: Inverse, norm: float) -> tuple[float, float]:
    found = (way.norm(), 1 / norm if norm else math.inf)
    way.extremes, way.is_searched = found, True
    return found


def _is_small(way: Inverse) -> bool:
    g, weight = way.convolution.geometry, way.convolution.weight
    m, n = g.out_dim // g.groups, g.in_dim // g.groups
    need = _COPIES * g.groups * m * n * factor_dtype(weight.dtype).itemsize
    return g.groups * m * n * min(m, n) <= _DENSE_WORK and need <= current_budget(None, weight.device)


def _of_matrix(way: Inverse) -> tuple[float, float]:
    A = way.convolution
    matrices = group_matrices(A.geometry, A.weight.detach().to(factor_dtype(A.weight.dtype)))
    values = torch.linalg.svdvals(matrices).flatten().sort(descending=True).values
    kept = len(values) - way.truncated
    return float(values[0]), float(values[kept - 1]) if kept else math.inf
