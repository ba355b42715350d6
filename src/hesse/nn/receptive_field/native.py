"""A block's reduction in native code: terms are made and reduced in one pass, without memory for them."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from hesse.autodiff.compiled.mode import CompileNotice
from hesse.nn.receptive_field.kernel import Kernel


class NativeBlock:
    """``kernel.partial()``, compiled; eager, with a notice, where it cannot be compiled or gives other numbers.

    Each shape of block is compared with the eager result the first time.

    Args:
        kernel: what to compile; an associative reduction.

    Attributes:
        fails: whether it runs eagerly from now on.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._eager = kernel.partial()
        self._compiled = torch.compile(self._eager)
        self._seen: set[tuple[object, ...]] = set()
        self.fails = False

    def __call__(self, pixels: Tensor, weights: Tensor) -> Tensor:
        """As what `Kernel.partial` returns."""
        if self.fails:
            return self._eager(pixels, weights)
        try:
            result = self._compiled(pixels, weights)
        except Exception as error:
            return self._give_up(pixels, weights, f"it cannot be compiled: {type(error).__name__}: {error}")
        key = (pixels.shape, weights.shape, pixels.dtype, weights.dtype, pixels.device)
        if key not in self._seen:
            self._seen.add(key)
            if not _agree(result, self._eager(pixels, weights)):
                return self._give_up(pixels, weights, "the compiled function gives other numbers")
        return result

    def _give_up(self, pixels: Tensor, weights: Tensor, why: str) -> Tensor:
        self.fails = True
        warnings.warn(f"A receptive-field convolution runs without compiling: {why}", CompileNotice, stacklevel=2)
        return self._eager(pixels, weights)


def _agree(a: Tensor, b: Tensor) -> bool:
    """Up to the rounding of a sum in another order."""
    tolerance = torch.finfo(a.dtype).eps ** 0.5
    scale = float(b.detach().abs().nan_to_num(0, 0, 0).max()) if b.numel() else 0.0
    return a.dtype == b.dtype and torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
