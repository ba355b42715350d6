"""The ladder: the cheapest way that inverts a convolution exactly, certified at each use, with the next way behind it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import final

import torch
from torch import Tensor

from hesse.convolutions import boundary, certificate, circular, krylov, patches, small
from hesse.convolutions.inverse import Applied, Inverse
from hesse.convolutions.operator import Convolution
from hesse.convolutions.winding import winding
from hesse.core.errors import MemoryBudgetError, NonFiniteError, NotConvergedError, StructureError
from hesse.core.memory import Budget

METHODS = ("auto", "dense", "circular", "patches", "krylov", "boundary")
_TINY_SIDE = 400  # smaller side of a matrix up to which its singular values are the cheapest way
_MANY_GROUPS, _SMALL_SIDE = 8, 1000  # many groups share no boundary, but they would share the search for small values
_BENIGN_SQUARE, _BENIGN_OTHER = 30.0, 60.0  # condition of the symbol up to which Krylov methods take few steps
_FEW_UNKNOWNS = 1500  # of a boundary that is factored sooner than Krylov steps are taken
_MOST_UNKNOWNS = 12_000  # of a boundary that is factored before Krylov methods were tried

Make = Callable[[], Inverse | None]


def inverse(A: Convolution, *, rtol: float | None = None, memory: Budget | None = None, method: str = "auto") -> Inverse:
    """The pseudo-inverse of a convolution.

    ``"auto"``: windows that do not overlap, circular convolutions and small matrices by their singular values; kernels without
    winding and with a well-conditioned symbol by Krylov steps if their boundary is large; all others by the boundary method.
    An answer that fails its certificate is computed again by the next way. How many images there will be is not known here: an
    inverse is made once, and kept for all that come.

    Args:
        A: the convolution; its weight must not change afterwards.
        rtol: as for `torch.linalg.pinv`: singular values up to `rtol` times the largest count as zero.
        memory: the budget; by default the one in force.
        method: one way, without another behind it.

    Raises:
        StructureError: no such method, or it does not apply to this convolution.
        MemoryBudgetError: no way fits into the budget.
    """
    if method not in METHODS:
        listed = ", ".join(repr(m) for m in METHODS)
        raise StructureError("A convolution is inverted by one of a few methods.", f"method={method!r}", f"use one of {listed}")
    if not bool(torch.isfinite(A.weight).all()):
        raise NonFiniteError(
            "A convolution with a finite weight has a pseudo-inverse.", "NaN or infinity", "look where it comes from"
        )
    if method == "auto":
        return Laddered(A, [(name, partial(made, name, A, rtol, memory)) for name in order(A, rtol)], rtol)
    found = made(method, A, rtol, memory)
    if found is None:
        raise StructureError(
            f"The method {method!r} does not apply to this convolution.", str(A), "use method='auto', or one that applies"
        )
    return found


def made(method: str, A: Convolution, rtol: float | None, memory: Budget | None) -> Inverse | None:
    """The inverse by one of the ways; None where it does not apply."""
    ways = {
        "patches": patches.make,
        "circular": circular.make,
        "dense": small.make,
        "krylov": krylov.make,
        "boundary": boundary.make,
    }
    return ways[method](A, rtol=rtol, memory=memory)


def order(A: Convolution, rtol: float | None) -> list[str]:
    """The names of the ways to try, best first."""
    g = A.geometry
    first = ["patches", "circular"]
    tiny = _TINY_SIDE if g.groups < _MANY_GROUPS else _SMALL_SIDE
    if min(g.in_dim, g.out_dim) <= tiny * g.groups:
        return [*first, "dense", "boundary", "krylov"]
    size = boundary.boundary_size(A)
    if size <= _FEW_UNKNOWNS or rtol is not None:
        return [*first, "boundary", "dense", "krylov"]
    if size > _MOST_UNKNOWNS or is_benign(A):
        return [*first, "krylov", "boundary", "dense"]
    return [*first, "boundary", "krylov", "dense"]


def is_benign(A: Convolution) -> bool:
    """Whether few Krylov steps are to be expected (see `winding`)."""
    found = winding(A)
    square = A.geometry.out_channels == A.geometry.in_channels * math.prod(A.geometry.stride)
    return not found.winds and found.condition < (_BENIGN_SQUARE if square else _BENIGN_OTHER)


@final
class Laddered(Inverse):
    """Ways to invert, of which each answer takes the first whose certificate holds, beginning with the one that held last.

    Attributes:
        rtol: as of `inverse`.
        current: the way in use.
    """

    certified = True
    in_range = True

    def __init__(self, A: Convolution, ways: list[tuple[str, Make]], rtol: float | None) -> None:
        self.convolution, self.rtol = A, rtol
        self._ways = ways
        self._known: list[Inverse] = []
        self._memory: MemoryBudgetError | None = None
        self._missed: list[str] = []
        first = self._at(0)
        if first is None:
            raise self._memory or StructureError(f"No way inverts {A}.", "none applies", "use method='dense'")
        self.current = first

    @property
    def method(self) -> str:  # type: ignore[override]
        """Of the way in use."""
        return self.current.method

    @property
    def truncated(self) -> int:  # type: ignore[override]
        """Singular values that count as zero."""
        return self.current.truncated

    @property
    def gap(self) -> float:  # type: ignore[override]
        """As of `Inverse`."""
        return self.current.gap

    def _at(self, index: int) -> Inverse | None:
        """The way of a number among those that apply and fit into memory, made once; None past the last."""
        while len(self._known) <= index and self._ways:
            name, make = self._ways.pop(0)
            try:
                found = make()
            except MemoryBudgetError as error:
                self._memory = error
                continue
            except NotConvergedError as error:
                self._missed.append(f"{name}: {error.found}")
                continue
            if found is not None:
                self._known.append(found)
        return self._known[index] if index < len(self._known) else None

    def apply(self, Y: Tensor, *, adjoint: bool = False) -> Applied:
        if not bool(torch.isfinite(Y.sum()) or torch.isfinite(Y).all()):  # the sum alone may overflow
            raise NonFiniteError(
                "A pseudo-inverse is applied to finite images.", "NaN or infinity", "look where they come from"
            )
        index, refused = self._known.index(self.current), list[str]()
        while (way := self._at(index)) is not None:
            try:
                found = certificate.certified(way, Y, adjoint=adjoint, cut=self.rtol)
            except MemoryBudgetError as error:
                refused.append(f"{way.method}: {error.found} do not fit")
            else:
                if not found.trouble:
                    self.current = way
                    return found
                refused.append(f"{way.method}: {found.trouble}")
            index += 1
        refused = [*self._missed, *refused]
        if self._memory is not None:
            known = self._memory
            raise MemoryBudgetError(known.asked, "; ".join([known.found, *refused]), known.remedy, known.least)
        raise NotConvergedError(
            f"No way to invert {self.convolution} gave an answer that passes its certificate.",
            "; ".join(refused),
            "use float64, raise rtol, or raise the memory budget",
        )

    def norm(self) -> float:
        return self.current.norm()

    def condition(self) -> float:
        return self.current.condition()
