"""What a solution is worth: its residuals with the true operator, or with one that was compared with it."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.convolutions.inverse import Applied, Inverse
from hesse.convolutions.products import convolve, convolve_transposed
from hesse.convolutions.truncation import cutoff_ratio
from hesse.core import random
from hesse.core.errors import NotConvergedError
from hesse.linalg.products import row_norms

_ROUNDINGS = 200  # what a stable method may be off by, in units of rounding
COUNTED = ("dense", "circular", "patches")  # by all singular values
_IN_RANGE = (*COUNTED, "krylov")
_TO_DROP = "have to be cut off"  # as methods say it that cannot
_POWER_STEPS = 3
_HIGH = 1e6


class ConditionWarning(RuntimeWarning):
    """Single precision on a problem whose condition number leaves few digits."""


@dataclass(frozen=True)
class Certificate:
    """What is known of images ``x`` as solutions ``M⁺ y``, where M is a convolution or its adjoint; the worst of a block.

    Attributes:
        ok: whether every image passed.
        residual: ``|y - M x| / |y|``.
        normal_residual: ``|Mᴴ r| / (|M| |r|)`` of the residual r: the change of M, relative to it, that makes x exact
            in the least-squares sense (Stewart 1977).
        backward_error: the least change of M and y, relative to them, known to make x exact: the normal residual,
            ``|r| / (|M| |x| + |y|)`` (Rigal and Gaches 1967), or ``|M M⁺ r|`` in place of ``|r|`` there.
        membership: ``|x - Mᴴ z| / (|M| |z| + |x|)`` with ``z = M⁺ᴴ x``: the change of M that puts x into the range of its
            adjoint, where the shortest solution lies; 0 where that needs no look.
        trouble: what failed.
    """

    ok: bool
    residual: float = 0.0
    normal_residual: float = 0.0
    backward_error: float = 0.0
    membership: float = 0.0
    trouble: str = ""


def check(
    inverse: Inverse, Y: Tensor, X: Tensor, *, adjoint: bool = False, tolerance: float | None = None, cut: float | None = None
) -> Certificate:
    """Look at images ``X = A⁺ Y`` (with `adjoint`: ``A⁺ᴴ Y``).

    Args:
        inverse: how X was found.
        Y: ``[k, *shape]``.
        X: the solutions.
        adjoint: that of the pseudo-inverse was applied.
        tolerance: of backward error and membership; by default 200 units of rounding.
        cut: where singular values were dropped, the largest, relative to the norm, that may be; by default that
            in force without an rtol.

    Cost: a product with A and one with its adjoint. One more solution where the residual is neither small nor orthogonal
    to the range, and one more where A may have a null space and the method does not
    stay clear of it by construction.
    """
    return _Check(inverse, adjoint, tolerance, cut).run(Y, X)


def applied(inverse: Inverse, Y: Tensor, *, adjoint: bool = False, cut: float | None = None) -> Tensor:
    """``A⁺ y`` (with `adjoint`: ``A⁺ᴴ x``) of a block of images, certified.

    Raises:
        NotConvergedError: the solutions did not pass; carries them.
    """
    found = certified(inverse, Y, adjoint=adjoint, cut=cut)
    if found.trouble:
        raise NotConvergedError(
            f"A solution by the method '{inverse.method}' did not pass its certificate.",
            f"{found.trouble}, for {inverse.convolution}",
            "use float64, or hesse.pinv with a larger rtol=, which drops small singular values",
            found.value,
        )
    return found.value


def certified(inverse: Inverse, Y: Tensor, *, adjoint: bool = False, cut: float | None = None) -> Applied:
    """What `Inverse.apply` gives, with trouble where the certificate fails.

    Methods that have measured their solutions to be right are believed. Those that have missed their own tolerance are judged
    by the certificate alone, if they prove the range; not those that have met singular values which have to be dropped.
    """
    if not len(Y):
        g = inverse.convolution.geometry
        return Applied(Y.new_zeros(0, *(g.out_shape if adjoint else g.in_shape)))
    found = inverse.measured(Y, adjoint=adjoint)
    if getattr(inverse, "certified", False) or found.backward_error <= _ROUNDINGS * torch.finfo(Y.dtype).eps:
        return found
    if found.trouble and (_TO_DROP in found.trouble or not proves_range(inverse)):
        return found
    certificate = check(inverse, Y, found.value, adjoint=adjoint, cut=cut)
    return found._replace(trouble="" if certificate.ok else found.trouble or certificate.trouble)


def proves_range(inverse: Inverse) -> bool:
    """Whether solutions have no part in the null space by the way that they are found."""
    return getattr(inverse, "in_range", inverse.method in _IN_RANGE)


class _Check:
    """The map M, and what may be tolerated."""

    def __init__(self, inverse: Inverse, adjoint: bool, tolerance: float | None, cut: float | None) -> None:
        A = inverse.convolution
        self.inverse, self.adjoint = inverse, adjoint
        self.geometry, self.weight = A.geometry, A.weight.detach()
        self.tolerance = _ROUNDINGS * torch.finfo(A.weight.dtype).eps if tolerance is None else tolerance
        self.cut = cutoff_ratio(A, cut) if inverse.truncated else 0.0
        columns = A.shape[0] if adjoint else A.shape[1]
        self.has_null_space = inverse.truncated > 0 or columns > min(A.shape) or inverse.method == "krylov"

    def run(self, Y: Tensor, X: Tensor) -> Certificate:
        """The certificate of a block."""
        if not bool(torch.isfinite(X).all()):
            return Certificate(
                False, residual=float("inf"), backward_error=float("inf"), trouble="NaN or infinity in the solution"
            )
        norm = self.inverse.norm()
        if norm == 0:
            trouble = "a solution that is not zero, of the zero operator" if bool(X.any()) else ""
            return Certificate(not trouble, 1.0, trouble=trouble)
        R = Y - self._product(X)
        missed, size = _lengths(R), _lengths(Y)
        scale = norm * _lengths(X) + size
        unit = _unit(R, missed)  # products of tiny or huge images would under- or overflow
        steep = _lengths(self._back(unit)) / norm
        small, orthogonal = _over(missed, scale), torch.where(missed > 0, steep, 0.0)
        error = torch.minimum(small, orthogonal)
        is_good = error <= self.tolerance
        if not bool(is_good.all()):
            change = self._product(self.inverse.apply(unit, adjoint=self.adjoint).value)
            left = small * _lengths(change)
            allowed = self.tolerance + self.cut * small
            error = torch.where(is_good, error, left)
            is_good |= (left <= self.tolerance) & (steep * small <= allowed)
        outside, is_inside = self._membership(X, norm)
        trouble = "" if bool(is_good.all()) else f"backward error {float(error.max()):.2g}"
        if not is_inside:
            trouble += f"{' and ' if trouble else ''}a part of {outside:.2g} outside of the range of the adjoint"
        residual = float(_over(missed, size).max())
        return Certificate(not trouble, residual, float(orthogonal.max()), float(error.max()), outside, trouble)

    def _membership(self, X: Tensor, norm: float) -> tuple[float, bool]:
        if not self.has_null_space or (proves_range(self.inverse) and not self.inverse.truncated):
            return 0.0, True
        lengths = _lengths(X)
        unit = _unit(X, lengths)
        Z = self.inverse.apply(unit, adjoint=not self.adjoint).value
        outside = float(torch.where(lengths > 0, _lengths(unit - self._back(Z)) / (norm * _lengths(Z) + 1), 0.0).max())
        return outside, outside <= self.tolerance

    def _product(self, V: Tensor) -> Tensor:
        return self._adjoint(V) if self.adjoint else convolve(self.geometry, self.weight, V)

    def _back(self, V: Tensor) -> Tensor:
        return convolve(self.geometry, self.weight, V) if self.adjoint else self._adjoint(V)

    def _adjoint(self, V: Tensor) -> Tensor:
        return convolve_transposed(self.geometry, self.weight.conj(), V)


def _lengths(V: Tensor) -> Tensor:
    """``[k]``: the norms of images."""
    return row_norms(V.flatten(1))


def _unit(V: Tensor, lengths: Tensor) -> Tensor:
    """Images of length 1, or 0."""
    return V / torch.where(lengths > 0, lengths, 1).reshape(-1, *(1,) * (V.ndim - 1))


def _over(part: Tensor, whole: Tensor) -> Tensor:
    """The quotient, where 0 / 0 is 0."""
    return torch.where(part == 0, torch.zeros_like(part), part / whole)


def warn_of_condition(inverse: Inverse) -> None:
    """Warn if the operator is of single precision and its condition number above 1e6.

    Cost: nothing where all singular values are known, for double precision, and for Krylov methods, which do not get far with
    such operators; else six solutions.
    """
    weight = inverse.convolution.weight
    eps = torch.finfo(weight.dtype).eps
    if eps < 1e-10 or inverse.method == "krylov":
        return
    condition = inverse.condition() if inverse.method in COUNTED else at_least(inverse)
    if condition > _HIGH:
        expected = min(condition * eps, 1.0)
        text = f"{inverse.convolution} is of {weight.dtype} and has a condition number of {condition:.1e} or more: expect a"
        text += f" relative error of about {expected:.0e} in the solution. Use float64."
        warnings.warn(text, ConditionWarning, stacklevel=2)


def at_least(inverse: Inverse) -> float:
    """A lower bound of the condition number, rarely less than a third of it, by a few steps of the power method.

    Infinite where solutions do not pass their certificates.
    """
    A = inverse.convolution
    V = random.normal((1, *A.geometry.out_shape), A.weight.dtype, A.weight.device, random.make_generator())
    largest = 0.0
    for _ in range(_POWER_STEPS):
        try:
            X = inverse.apply(_unit(V, _lengths(V))).value
            V = inverse.apply(_unit(X, _lengths(X)), adjoint=True).value
        except NotConvergedError:
            return math.inf
        largest = max(largest, float(_lengths(X)), float(_lengths(V)))
    return inverse.norm() * largest
