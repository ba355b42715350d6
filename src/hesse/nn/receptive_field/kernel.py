"""A receptive-field kernel: what is computed in every window, whatever the numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.nn.receptive_field.geometry import Geometry
from hesse.nn.receptive_field.reductions import REDUCTIONS, Reduce, Reduction

Function = Callable[[Tensor, Tensor], Tensor]
Partial = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Kernel:
    """A function of (pixel, weight), a reduction over the window, and where the windows lie.

    Attributes:
        fn: elementwise; pixels are ``[taps, groups, 1, positions]``, weights ``[*weight_shape, taps, groups, filters, 1]``.
        reduce: a name, or a callable ``(tensor, dim)``.
        geometry: of the windows.
        extra: axes of the weight shape.
        dtype: of what fn returns.
        compiled: the reduction of a block, compiled; None: it runs eagerly.
    """

    fn: Function
    reduce: Reduce
    geometry: Geometry
    extra: int
    dtype: torch.dtype
    compiled: Partial | None = None

    @property
    def reduction(self) -> Reduction | None:
        """The associative reduction of that name; None for a callable."""
        return REDUCTIONS[self.reduce] if isinstance(self.reduce, str) else None

    @property
    def accumulator(self) -> torch.dtype:
        """What terms are accumulated in: float32 for 16-bit ones."""
        return torch.float32 if self.dtype in (torch.float16, torch.bfloat16) else self.dtype

    def terms(self, pixels: Tensor, weights: Tensor) -> Tensor:
        """The function's values, in the dtype they are accumulated in: ``[taps, groups, filters, positions]``."""
        return self.fn(pixels, weights).to(self.accumulator)

    def partial(self) -> Partial:
        """What reduces a block of taps, from its pixels and weights: ``[groups, filters, positions]``."""
        if self.compiled is not None:
            return self.compiled
        assert self.reduction is not None
        fn, reduce, dtype = self.fn, self.reduction.partial, self.accumulator
        if dtype == self.dtype:
            return lambda pixels, weights: reduce(fn(pixels, weights))
        return lambda pixels, weights: reduce(fn(pixels, weights).to(dtype))
