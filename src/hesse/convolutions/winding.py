"""The router's detector: does the determinant of the symbol wind around zero, and how ill-conditioned is the symbol?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.convolutions.geometry import Geometry
from hesse.convolutions.operator import Convolution
from hesse.convolutions.symbol import symbol
from hesse.convolutions.truncation import factor_dtype, one_thread

_LINES = 8  # frequencies across an axis at which the determinant is followed along it
_FIRST_POINTS, _MOST_POINTS = 64, 1024  # along a line
_STEP = 2.0  # radians between two points; a step of pi could go either way
_BLOCKS = 128  # frequencies at which singular values are looked at


@dataclass(frozen=True)
class Winding:
    """What the symbol says of a convolution with few cells at its border.

    Attributes:
        numbers: for each axis the winding numbers of the determinant along lines that could be followed, of all groups; none if
            the symbol is not square. Where one is not zero, the zero-padded convolution has singular values that shrink
            exponentially with the size of the image (the index theorem of Toeplitz operators).
        condition: of the symbol at the frequencies looked at: the largest singular value over the smallest (a lower bound of
            that over all frequencies).
        norm: the largest singular value at those.
    """

    numbers: tuple[tuple[int, ...], ...]
    condition: float
    norm: float

    @property
    def winds(self) -> bool:
        """Whether any number is not zero."""
        return any(any(axis) for axis in self.numbers)


def winding(A: Convolution) -> Winding:
    """Follow the determinant of the symbol of a convolution around each axis, at a few frequencies across.

    The window stands where the padding puts it, as in the matrix of the convolution; a shift of it would add to the number.

    Args:
        A: the convolution; its padding mode plays no role.

    Cost: LU decompositions of ``[channels, channels]`` at about ``5 x 64`` frequencies an axis (more where the
    determinant turns fast); singular values at about 100.
    """
    g = A.geometry
    weight = A.weight.detach().to(factor_dtype(A.weight.dtype))
    weight = weight.reshape(g.groups, g.out_channels // g.groups, *weight.shape[1:])
    is_square = g.out_channels == g.in_channels * math.prod(g.stride)
    with one_thread(g.out_channels // g.groups):
        numbers = tuple(_along(g, weight, axis) for axis in range(g.ndim)) if is_square else ()
        values = torch.linalg.svdvals(_symbol(g, weight, _sample(g)))
    largest, smallest = float(values.max()), float(values.min())
    return Winding(numbers, largest / smallest if smallest else float("inf"), largest)


def _symbol(g: Geometry, weight: Tensor, torus: tuple[int, ...], first: int = 0) -> Tensor:
    """The symbol with one axis moved to the front, whose sizes and frequencies then come first."""
    order = [first, *(a for a in range(g.ndim) if a != first)]
    options = (g.stride, g.dilation, tuple(-before for before, _ in g.padding))
    stride, dilation, offset = (tuple(option[a] for a in order) for option in options)
    return symbol(weight.movedim(3 + first, 3), torus, stride=stride, dilation=dilation, offset=offset)


def _sample(g: Geometry) -> tuple[int, ...]:
    side = max(2, round(_BLOCKS ** (1 / g.ndim)))
    return tuple(min(2 * ((n + 1) // 2), side + side % 2) for n in g.out_size)


def _along(g: Geometry, weight: Tensor, axis: int) -> tuple[int, ...]:
    """The winding number along an axis for each line and group (opposite lines of real weights once)."""
    # of a real weight the last axis has half its frequencies; along the line all are needed
    weight = weight.to(weight.dtype.to_complex()) if g.ndim == 1 else weight
    points, across = _points(g, axis), (_LINES if g.ndim == 2 else _LINES // 2,) * (g.ndim - 1)
    while True:
        sign = torch.linalg.slogdet(_symbol(g, weight, (points, *across), axis))[0].flatten(1)
        turns = torch.angle(sign.roll(-1, 0) * sign.conj())
        is_followed = turns.abs().amax(0) < _STEP
        numbers = (turns.sum(0) / (2 * math.pi)).round().to(torch.int64)[is_followed]
        if bool(numbers.any()) or bool(is_followed.all()) or points >= _MOST_POINTS:
            return tuple(numbers.tolist())
        points *= 2


def _points(g: Geometry, axis: int) -> int:
    """Enough for a determinant that is one power of the frequency, whose fast turns would else look like slow ones."""
    before, _ = g.padding[axis]
    power = g.out_channels // g.groups * max(before, g.reach[axis] - 1 - before) / g.stride[axis]
    return min(_MOST_POINTS, max(_FIRST_POINTS, 1 << math.ceil(2 * math.pi * power / _STEP).bit_length()))
