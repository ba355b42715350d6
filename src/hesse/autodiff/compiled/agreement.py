"""Agreement of compiled code with the direct run."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def largest(tensor: Tensor) -> float:
    """The largest finite magnitude among floating numbers."""
    if not (tensor.dtype.is_floating_point or tensor.dtype.is_complex):
        return 0.0
    own = tensor.detach()
    if own.layout is not torch.strided:
        own = own._values() if own.layout is torch.sparse_coo else own.values()
    sizes = own.abs()
    largest = float(sizes.max()) if sizes.numel() else 0.0
    if math.isfinite(largest):
        return largest
    finite = sizes[sizes.isfinite()]
    return float(finite.max()) if finite.numel() else 0.0


def agree(mine: Tensor, its: Tensor, scale: float) -> bool:
    """Agreement to half of the digits; of numbers that are rounding beside the others, to three quarters of theirs."""
    if mine.shape != its.shape or mine.dtype != its.dtype:
        return False
    if not (its.dtype.is_floating_point or its.dtype.is_complex):
        return torch.equal(mine, its)
    wide = torch.complex128 if its.dtype.is_complex else torch.float64
    a, b = mine.to(wide), its.to(wide)
    rtol = torch.finfo(its.dtype).eps ** 0.5
    atol = rtol * largest(its) + rtol**1.5 * scale
    if not a.numel() or float((a - b).abs().sub_(b.abs(), alpha=rtol).max()) <= atol:
        return True
    return torch.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True)  # infinite, or not a number, in the same places
