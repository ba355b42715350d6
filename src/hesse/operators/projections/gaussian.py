"""Projection by independent normal numbers."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack

from hesse.operators.projections.base import Places, RandomProjection
from hesse.operators.projections.words import column_words, entry_words, start_of

_NUMBERS = 2**18  # of the matrix, made at a time
_KEPT = 2**22  # numbers of a matrix so small that it is kept
_STREAM = 1
_LEVELS = 2**16


class GaussianProjection(RandomProjection):
    """Independent normal numbers of variance 1/k.

    A number is one of 65,536 equally likely quantiles of the normal distribution (scaled to variance 1/k; the largest is 4.3
    standard deviations, the kurtosis 2.999), looked up by 16 bits of a random word: the same bits on every device. The first
    rows of a projection to more dimensions are the same but for their scale.

    Squared norms have the variance ``2 |v|⁴ / k``. Cost: for each column, k numbers (about 2 ns each on one core of a CPU, for
    all vectors of a product together), and k multiplications a vector. A matrix of at most 4 million numbers is kept.
    """

    kind = "gaussian"

    def width(self, count: int) -> int:
        """How many columns are worked on at a time."""
        return max(1, _NUMBERS // self.rows)

    def _times(self, vectors: Tensor, places: Places) -> Tensor:
        return vectors @ self._columns(places, vectors) * self.rows**-0.5

    def _back(self, weights: Tensor, places: Places) -> Tensor:
        return (weights * self.rows**-0.5) @ self._columns(places, weights).mT

    def _columns(self, places: Places, like: Tensor) -> Tensor:
        """Some columns times √k, one after the other: ``[c, k]``."""
        is_plain = like.device == self.in_space.device and not _len_torch_dispatch_stack()
        if is_plain and self.rows * self.in_space.dim <= _KEPT:
            return self._kept[places]
        return self._made(places, like.device, like.dtype)

    @cached_property
    def _kept(self) -> Tensor:
        """All columns of a small projection."""
        with torch.inference_mode(False):
            return self._made(slice(0, self.in_space.dim), self.in_space.device, self.work_dtype)

    def _made(self, places: Places, device: torch.device, dtype: torch.dtype) -> Tensor:
        words = entry_words(column_words(start_of(self.seed, _STREAM), places, device), -(-self.rows // 4))
        table = torch.from_numpy(_quantiles()).to(device=device, dtype=dtype)
        return table.take(words.view(torch.int16).long()[:, : self.rows])


@lru_cache(1)
def _quantiles() -> Any:
    """Quantiles of the normal distribution in the middle of 65,536 equal parts, of variance one, rounded to float32."""
    from scipy.special import ndtri

    quantiles = ndtri((np.arange(_LEVELS) + 0.5) / _LEVELS)
    return (quantiles / np.sqrt(np.mean(quantiles**2))).astype(np.float32)
