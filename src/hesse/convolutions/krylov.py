"""Iterations with products only (LSMR), preconditioned by a circulant where that is safe."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, final

import torch
from torch import Tensor

from hesse.convolutions import preconditioner
from hesse.convolutions.inverse import Applied, Inverse
from hesse.convolutions.operator import Convolution
from hesse.convolutions.preconditioner import CirculantPreconditioner
from hesse.convolutions.truncation import cutoff_ratio
from hesse.core import random
from hesse.core.memory import Budget, chunk_size, current_budget
from hesse.linalg.answer import Answer
from hesse.linalg.lsmr import lsmr
from hesse.linalg.norm import norm
from hesse.linalg.products import normal_vectors, row_norms
from hesse.operators import LinearOperator

_SLACK = 8  # times eps: the tolerance of the residuals
_MAX_ITERATIONS = 1000
_VECTORS = 8  # images in and out that an iteration holds
_ROUNDINGS = 200  # times eps: residuals that rounding errors may leave
_POWER_STEPS, _ROUGH = 8, 1e-3
_WORST = 1e10  # condition up to which a small residual is enough where the iteration did not end by itself


def make(
    A: Convolution,
    *,
    rtol: float | None = None,
    memory: Budget | None = None,
    tolerance: float | None = None,
    max_iterations: int = _MAX_ITERATIONS,
) -> KrylovInverse:
    """The inverse by LSMR from zero, which gives the shortest least-squares solution; it applies to every convolution.

    Args:
        A: the convolution.
        rtol: as for `torch.linalg.pinv`. Nothing is cut off: where singular values seem to be below, `apply` says so.
        memory: the budget; by default the one in force.
        tolerance: of residuals (see `KrylovInverse`); by default 8 eps.
        max_iterations: steps allowed for a block of images.

    Cost: nothing but the preconditioner, if there is one.
    """
    tolerance = _SLACK * torch.finfo(A.weight.dtype).eps if tolerance is None else tolerance
    return KrylovInverse(A, cutoff_ratio(A, rtol), tolerance, max_iterations, memory)


class Solved(NamedTuple):
    """Solutions ``[k, in]`` with what is known of them.

    Attributes:
        residual: the largest ``|y - A x| / |y|``.
        normal_residual: the largest ``|A^H r| / (|A| |r|)`` with the residual r and a lower bound of the norm.
        condition: a lower bound of that of A (1 if a preconditioner hid it).
    """

    value: Tensor
    residual: float
    normal_residual: float
    condition: float
    iterations: int
    trouble: str


@final
class KrylovInverse(Inverse):
    """The pseudo-inverse by LSMR (Fong and Saunders 2011), whose memory does not grow with the iterations.

    LSMR stops at `tolerance`, or where rounding errors allow no more. With the true residual ``r = y - A x`` and t, twice the
    tolerance or 200 eps where that is larger, an image is good if ``|r| <= t (|A| |x| + |y|)`` (x is exact for a relative
    change of A and y of that size), or ``|A^H r| <= t |A| |r|`` (of A; Stewart 1977), or if the part of r in the range of A,
    which is ``A^{+H} (A^H r)``, is not longer than ``t (|A| |x| + |y|)`` (of y).

    Attributes:
        preconditioner: the circulant one; None where A is not proved to have full rank. It acts from the right, which
            changes nothing but the number of iterations.
        tolerance, max_iterations: of the iteration.
    """

    method = "krylov"

    def __init__(self, A: Convolution, rtol: float, tolerance: float, max_iterations: int, memory: Budget | None) -> None:
        self.convolution = Convolution(A.weight.detach(), A.geometry)
        self.tolerance, self.max_iterations = tolerance, max_iterations
        self.preconditioner: CirculantPreconditioner | None = preconditioner.make(A, rtol=rtol, memory=memory)
        self._rtol, self._memory = rtol, memory
        self._norm: float | None = None
        self._condition: float | None = None

    def apply(self, Y: Tensor, *, adjoint: bool = False) -> Applied:
        solved = self.solve(Y, adjoint=adjoint)
        return Applied(solved.value, solved.iterations, solved.trouble)

    def solve(self, Y: Tensor, *, adjoint: bool = False, tolerance: float | None = None) -> Solved:
        """`apply` with its certificate; `value` are images."""
        if not len(Y):
            g = self.convolution.geometry
            return Solved(Y.new_zeros(0, *(g.out_shape if adjoint else g.in_shape)), 0.0, 0.0, 1.0, 0, "")
        tolerance = self.tolerance if tolerance is None else tolerance
        A = self.convolution.H if adjoint else self.convolution
        each = _VECTORS * sum(A.shape) * self.convolution.weight.dtype.itemsize
        budget = current_budget(self._memory, Y.device)
        at_once = chunk_size(len(Y), each, 2 * Y.numel() * Y.itemsize, budget, "the iterations of one image")
        parts = [self._block(part.flatten(1), adjoint, tolerance) for part in Y.split(at_once)]
        return Solved(
            A.in_space.unravel(torch.cat([part.value for part in parts])),
            max(part.residual for part in parts),
            max(part.normal_residual for part in parts),
            max(part.condition for part in parts),
            max(part.iterations for part in parts),
            next((part.trouble for part in parts if part.trouble), ""),
        )

    def _block(self, B: Tensor, adjoint: bool, tolerance: float) -> Solved:
        A = self.convolution.H if adjoint else self.convolution
        answer = self._lsmr(B, adjoint, tolerance)
        X = answer.value
        r = B - _times(A, X)
        missed, size = row_norms(r), row_norms(B)
        unit = torch.where(missed > 0, missed, 1)[:, None]
        gradient = _times(A.H, r / unit)
        norm = torch.maximum(_largest_ratio(row_norms(_times(A, X)), row_norms(X)), row_norms(gradient).max())
        norm = norm.clamp(min=0.0 if answer.norm is None else answer.norm)
        normal = torch.where(norm > 0, row_norms(gradient) / norm, norm)
        enough, scale = max(2 * tolerance, _ROUNDINGS * torch.finfo(B.dtype).eps), norm * row_norms(X) + size
        is_done = (missed <= enough * scale) | (normal <= enough)
        left = torch.nonzero(~is_done)[:, 0]
        if len(left) and answer.trouble:  # it went on until it could not; otherwise it was stopped
            projected = row_norms(self._lsmr(gradient[left], not adjoint, _ROUGH).value) * missed[left]
            is_done[left] = projected <= enough * scale[left]
        condition = answer.condition or 1.0
        residual = float(torch.where(size > 0, missed / size, size).max())
        trouble = "" if bool(is_done.all()) else answer.trouble or f"no convergence in {answer.iterations} iterations"
        if answer.trouble and condition > _WORST:
            trouble = trouble or f"{answer.trouble} at a condition number of at least {condition:.1g}"
        if condition * self._rtol > 1:
            trouble = f"the condition number is at least {condition:.1g}, so that singular values have to be cut off"
        return Solved(X, residual, float(normal.max()), condition, answer.iterations, trouble)

    def _lsmr(self, B: Tensor, adjoint: bool, tolerance: float) -> Answer:
        """The norm and the condition are lower bounds of those of A; None and 1 where the preconditioner hides them."""
        A, P = self.convolution, self.preconditioner
        if P is None:
            return lsmr(A.H if adjoint else A, B, tolerance, self.max_iterations)
        A, right = (A.H, P.H) if adjoint else (A, P)
        found = lsmr(A @ right, B, tolerance, self.max_iterations)
        return replace(found, value=_times(right, found.value), condition=1.0, norm=None)

    def norm(self) -> float:
        if self._norm is None:
            self._norm = float(abs(norm(self.convolution, ord=2, rtol=_ROUGH, memory=self._memory).value))
        return self._norm

    def condition(self) -> float:
        """The norm times the largest that the power method sees of that of ``A⁺``: a lower bound.

        Cost: eight pairs of solutions to three digits.
        """
        if self._condition is None:
            A, largest = self.convolution, 0.0
            v = normal_vectors(A.in_space, 2, random.make_generator())
            for _ in range(_POWER_STEPS):
                v = v / row_norms(v)[:, None].clamp(min=torch.finfo(v.dtype).tiny)
                y = self.solve(A.in_space.unravel(v), adjoint=True, tolerance=_ROUGH).value
                largest = max(largest, float(row_norms(y.flatten(1)).max()))
                v = self.solve(y, tolerance=_ROUGH).value.flatten(1)
            self._condition = max(self.norm() * largest, 1.0)
        return self._condition


def _times(A: LinearOperator, V: Tensor) -> Tensor:
    """``[k, out]``: A times rows."""
    return A.out_space.ravel(A.mm(A.in_space.unravel(V)), 1).to(V.dtype)


def _largest_ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / b, b).max()
