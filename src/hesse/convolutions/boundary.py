"""The boundary method: the pseudo-inverse of any convolution by a circulant and a dense system for its border."""

from __future__ import annotations

import math
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from hesse.convolutions.augmented import AugmentedSystem
from hesse.convolutions.inverse import Applied, Inverse
from hesse.convolutions.operator import Convolution
from hesse.convolutions.square import InvertedSymbol, SquareSystem, inverted_symbol, spectral_bound, torus_symbol
from hesse.convolutions.systems import Augmented, Direct, System, project
from hesse.convolutions.torus import Torus
from hesse.convolutions.triplets import Triplets, nothing, small_triplets
from hesse.convolutions.truncation import cutoff_ratio, factor_dtype
from hesse.core import random
from hesse.core.errors import MemoryBudgetError, NotConvergedError
from hesse.core.memory import Budget, current_budget, format_bytes

_D = 1e-4
_WORST_SYMBOL = 1e8  # of a square one that is inverted directly
_ZERO = 1e-13  # norm, relative to that of the symbol, of an operator whose entries cancel
_TINY = 1e-6  # cut-offs below are those of rounding
_WORST = 1e10  # condition of a square convolution that is solved directly
_MOST, _FEW = 512, 64  # triplets that are looked for
_SMALL_D, _LEAST_D = 5e-6, 2e-7
_FREQUENCIES = 600
_COPIES = 3  # of the matrix of the boundary: itself, a copy while it is put together, its factors
_TRIPLET = 25  # vectors that the search for a small singular triplet takes for each, measured
_LARGE = 20_000


def make(A: Convolution, *, rtol: float | None = None, memory: Budget | None = None) -> BoundaryInverse:
    """The inverse by the boundary method.

    Args:
        A: the convolution.
        rtol: as for `torch.linalg.pinv`.
        memory: the budget; by default the one in force.

    Raises:
        MemoryBudgetError: the dense system of the boundary does not fit.
        NotConvergedError: there are hundreds of tiny singular values.

    Cost: ``2/3 b^3`` operations for a boundary of b unknowns (square), or 8 times as many (other shapes, nearly singular
    ones), and a small inverse a frequency.
    """
    return BoundaryInverse(A, cutoff_ratio(A, rtol), current_budget(memory, A.weight.device))


def boundary_size(A: Convolution) -> int:
    """Unknowns of the dense system of a group, in the cheaper of its forms."""
    g = A.geometry
    if SquareSystem.fits(A):
        return len(Torus(g.one_group).out_ring) * (g.out_channels // g.groups)
    return AugmentedSystem.boundary(A)


@final
class BoundaryInverse(Inverse):
    """The pseudo-inverse by factors of a system on the boundary, refined; see `make`.

    Attributes:
        triplets: small singular triplets that are treated by themselves.
    """

    method = "boundary"
    in_range = True

    def __init__(self, A: Convolution, rtol: float, budget: float) -> None:
        self.convolution, self.rtol = A, rtol
        dtype = factor_dtype(A.weight.dtype)
        weight = A.weight.detach().to(dtype)
        scale = symbol_size(Convolution(weight, A.geometry))
        self._scale = scale if scale > 0 else 1.0
        self._unit = Convolution(weight / self._scale, A.geometry)
        self._bound = 1.0 if A.geometry.padding_mode == "zeros" and rtol < _TINY else self._norm
        is_zero = scale == 0 or self._bound < _ZERO or not bool(probe(self._unit).any())
        self._system, self.triplets = (None, nothing(A, min(A.shape))) if is_zero else self._factored(budget)
        values = self.triplets.values
        dropped = values <= rtol * self._bound
        self.truncated = int(dropped.sum())
        top = float(values[dropped].max()) if self.truncated else 0.0
        noise = 16 * max(A.shape) ** 0.5 * torch.finfo(dtype).eps
        self.gap = self._smallest / top if top > noise else math.inf

    @cached_property
    def _norm(self) -> float:
        """The largest singular value of the scaled convolution."""
        return largest(self._unit)

    @cached_property
    def _smallest(self) -> float:
        """The smallest singular value that is kept, of the scaled convolution; infinite if none is."""
        found = self.triplets
        if found.smallest is None and self._system is not None:
            found = small_triplets(self._unit, self._system, 0.0, 8)
        kept = found.values[found.values > self.rtol * self._bound]
        least = float(kept.min()) if len(kept) else math.inf
        return least if found.smallest is None else min(least, found.smallest)

    def _factored(self, budget: float) -> tuple[System | None, Triplets]:
        A = self._unit
        cut = self.rtol * self._bound
        if SquareSystem.fits(A) and self.rtol < _TINY:
            known = inverted_symbol(A)
            if known is not None and known.condition < _WORST_SYMBOL:
                require(A, boundary_size(A), budget)
                found = self._direct(known, cut)
                if found is not None:
                    return found, nothing(A)
            del known
        taken = require(A, AugmentedSystem.boundary(A), budget)
        each = _TRIPLET * max(A.shape) * A.weight.dtype.itemsize
        d = max(_D, cut / 30)
        while True:
            system = Augmented(A, d)
            needed = max(5 * d, 1.01 * cut)
            most = _MOST if d < _SMALL_D or needed < 2 * cut else _FEW
            triplets = small_triplets(A, system, needed, min(most, int(budget - taken) // each))
            if triplets.complete:
                return system, triplets
            if d <= _LEAST_D or needed < 2 * cut:
                least = taken + _MOST * each
                if budget < least:
                    raise MemoryBudgetError(
                        f"The boundary method keeps up to {_MOST} small singular vectors of {A}.",
                        f"a budget of {format_bytes(budget)}, where {format_bytes(least)} are enough",
                        f"allow it with hesse.memory({least}), or use smaller images",
                        least,
                    )
                raise NotConvergedError(
                    f"The small singular values of {A} were not found.",
                    f"more than {_MOST} up to {needed:.1g} times the norm of the symbol, or no convergence",
                    "use float64 and smaller images, or a rtol that drops fewer of them",
                )
            d /= 10

    def _direct(self, known: InvertedSymbol, cut: float) -> Direct | None:
        """The square system, unless it is singular or nearly so."""
        factors = SquareSystem(self._unit, known.skew, known.inverse)
        if factors.is_singular:
            return None
        system = Direct(self._unit, factors)
        return system if inverse_norm(self._unit, system) < min(_WORST, 0.1 / cut) else None

    def apply(self, Y: Tensor, *, adjoint: bool = False) -> Applied:
        images = Y.to(self._unit.weight.dtype)
        g, t = self.convolution.geometry, self.triplets
        if self._system is None or not len(Y):
            return Applied(Y.new_zeros(len(Y), *(g.out_shape if adjoint else g.in_shape)))
        # of each triplet the vector on the shorter side is known to rounding, the other one to rounding / value
        start, end = (t.V, t.U) if adjoint else (t.U, t.V)
        shorter = t.U if self.convolution.shape[0] < self.convolution.shape[1] else t.V
        known = start[t.values > self._system.d]
        value, steps = self._system.solve(images - project(images, known), adjoint, shorter)
        kept = t.values > self.rtol * self._bound
        if bool(kept.any()):  # from the residual, so that what is wrong with the longer vectors does not meet large numbers
            B = self._unit.H if adjoint else self._unit
            value = value + project(images - B @ value, start[kept], end[kept], 1 / t.values[kept])
            more, extra = self._system.solve(images - project(images, known) - B @ value, adjoint, shorter)
            value, steps = value + more, steps + extra
        return Applied((value / self._scale).to(Y.dtype), steps)

    def norm(self) -> float:
        return self._norm * self._scale if self._system is not None else 0.0

    def condition(self) -> float:
        return max(1.0, self._norm / self._smallest) if self._smallest < math.inf else 1.0


def symbol_size(A: Convolution) -> float:
    """About the largest 2-norm of the symbol, from some of its frequencies and the norm of the weight."""
    g = A.geometry
    C = torus_symbol(A, (False,) * g.ndim).flatten(0, g.ndim - 1)
    some = C[:: max(1, len(C) // _FREQUENCIES)]
    channels = min(g.out_channels, g.in_channels) // g.groups
    return max(spectral_bound(some), float(torch.linalg.vector_norm(A.weight)) / (channels * g.groups) ** 0.5)


def largest(A: Convolution) -> float:
    """The largest singular value, by Golub-Kahan bidiagonalization with full reorthogonalization.

    Cost: two products a step; 60 steps for small images, 15 for large ones (to about three digits).
    """
    steps = min(60 if max(A.shape) < _LARGE else 15, min(A.shape) + 1)
    v = A.in_space.ravel(A.in_space.normal(generator=random.make_generator()))
    v = v / torch.linalg.vector_norm(v)
    right, images = [v], []
    for _ in range(steps):
        image = A.flat @ right[-1]
        images.append(image)
        w = A.H.flat @ image
        basis = torch.stack(right)
        for _ in range(2):
            w = w - basis.mT @ (basis.conj() @ w)
        size = torch.linalg.vector_norm(w)
        if not float(size) > 1e-14:
            break
        right.append(w / size)
    return float(torch.linalg.matrix_norm(torch.stack(images), 2))


def probe(A: Convolution) -> Tensor:
    """What the convolution makes of a random image: zero only if it is (windows may see nothing but padding)."""
    return A @ A.in_space.normal(generator=random.make_generator())


def inverse_norm(A: Convolution, system: System) -> float:
    """The norm of the inverse, from below, by two steps of inverse iteration: enough to see one that is out of proportion."""
    v = A.in_space.normal(1, generator=random.make_generator())
    size = 0.0
    for _ in range(2):
        v = v / torch.linalg.vector_norm(v)
        v = system.small_first(v)
        size = float(torch.linalg.vector_norm(v))
    return size**0.5 if math.isfinite(size) else math.inf


def require(A: Convolution, size: int, budget: float) -> int:
    """Bytes of the dense systems of the boundary, of `size` unknowns a group.

    Raises:
        MemoryBudgetError: they do not fit.
    """
    g = A.geometry
    need = _COPIES * g.groups * size**2 * A.weight.dtype.itemsize
    if need > budget:
        groups = f" for each of {g.groups} groups" if g.groups > 1 else ""
        raise MemoryBudgetError(
            f"The boundary method solves a dense system of {size} unknowns{groups}.",
            f"{need / 2**30:.3g} GiB for {A}, and a budget of {budget / 2**30:.3g} GiB",
            f"allow it with hesse.memory({need}), or use smaller images",
            need,
        )
    return need
