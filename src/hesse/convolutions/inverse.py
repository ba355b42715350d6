"""What every way to invert a convolution hands back: an object that applies its pseudo-inverse."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from hesse.convolutions.operator import Convolution


class Applied(NamedTuple):
    """Images that a pseudo-inverse gave.

    Attributes:
        value: ``[k, *shape]``.
        iterations: steps that it took (refinements count).
        trouble: why the tolerance was not reached; empty if it was.
        backward_error: the worst of the block (see `Certificate`), where the method has measured it; else infinite.
    """

    value: Tensor
    iterations: int = 0
    trouble: str = ""
    backward_error: float = math.inf


class Inverse(ABC):
    """The Moore-Penrose inverse of a convolution, ready to be applied.

    Attributes:
        convolution: the operator A.
        method: its name, as solutions report it.
        truncated: singular values that count as zero.
        gap: the smallest singular value that was kept over the largest that was not; infinite if none was dropped or those
            dropped are zero to rounding.
        extremes: the largest singular value and the smallest that is kept, once somebody has asked (see `inverse_norm`).
        is_searched: whether they were found by iteration, the smallest from above.
        bound: of the norm of ``A⁺``, where only that was asked for.
    """

    convolution: Convolution
    method: str
    truncated: int = 0
    gap: float = float("inf")
    extremes: tuple[float, float] | None = None
    is_searched: bool = False
    bound: float | None = None

    @abstractmethod
    def apply(self, Y: Tensor, *, adjoint: bool = False) -> Applied:
        """``A⁺ y`` for images ``[k, *out_shape]``; with `adjoint` ``A⁺ᴴ x`` for images ``[k, *in_shape]``."""

    def measured(self, Y: Tensor, *, adjoint: bool = False) -> Applied:
        """As `apply`, with the backward error if the method can tell it for less than products with the operator cost."""
        return self.apply(Y, adjoint=adjoint)

    @abstractmethod
    def norm(self) -> float:
        """The largest singular value, to a few digits."""

    @abstractmethod
    def condition(self) -> float:
        """The largest singular value over the smallest that is kept, as the method itself can tell; often a lower bound.

        What is told to users is `inverse_norm.condition_of`.
        """
