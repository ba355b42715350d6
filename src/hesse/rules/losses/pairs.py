"""The form of losses that couple two halves of the output element by element, as a mean and its variance."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.rules.losses.curvature import OutputCurvature, computing
from hesse.rules.losses.draws import Uniform, signs


class Pairs(OutputCurvature):
    """``[[first, cross], [cross, second]]`` for every element of the first half along axis 1 and its partner in the second.

    Its square root is the symmetric one of a 2 x 2 matrix M, ``(M + sqrt(det M) I) / sqrt(tr M + 2 sqrt(det M))``
    (Levinger, "The square root of a 2 x 2 matrix", Mathematics Magazine 53, 1980).

    Args:
        first, cross, second: ``[n, d, ...]`` for outputs ``[n, 2 d, ...]``.
        dtype: of the output; that of `first` unless given.
        negative: when a block has a negative eigenvalue, for error messages.
    """

    def __init__(
        self, first: Tensor, cross: Tensor, second: Tensor, *, dtype: torch.dtype | None = None, negative: str = ""
    ) -> None:
        shape = torch.Size((first.shape[0], 2 * first.shape[1], *first.shape[2:]))
        super().__init__(shape, dtype or first.dtype, negative or "2 x 2 blocks with a negative eigenvalue")
        self.first, self.cross, self.second = (x.detach().to(computing(self.dtype)) for x in (first, cross, second))

    def _negative(self) -> Tensor:
        product, square = self.first * self.second, self.cross.square()
        rounding = 4 * torch.finfo(square.dtype).eps * square
        return (self.first < 0) | (self.second < 0) | (product < square - rounding)

    def _mv(self, v: Tensor) -> Tensor:
        return self._product((self.first, self.cross, self.second), v)

    def _diagonal(self) -> Tensor:
        return torch.cat([self.first, self.second], 1)

    def _root(self, k: int) -> Tensor:
        unit = torch.zeros(self.shape[0], self.count, dtype=self.first.dtype, device=self.first.device)
        unit[:, k] = 1
        return self._product(self._square_root(), unit.reshape(self.shape))

    def _sample(self, uniform: Uniform) -> Tensor:
        return self._product(self._square_root(), signs(uniform, self._diagonal()))

    def _product(self, blocks: tuple[Tensor, Tensor, Tensor], v: Tensor) -> Tensor:
        axis = 1 - len(self.shape)
        first, cross, second = blocks
        upper, lower = v.chunk(2, axis)
        return torch.cat([first * upper + cross * lower, cross * upper + second * lower], axis)

    def _square_root(self) -> tuple[Tensor, Tensor, Tensor]:
        root_det = (self.first * self.second - self.cross.square()).clamp(min=0).sqrt()
        size = (self.first + self.second + 2 * root_det).sqrt()
        size = size.masked_fill(size == 0, 1)
        return (self.first + root_det) / size, self.cross / size, (self.second + root_det) / size
