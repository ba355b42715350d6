"""Random vectors from explicit generators; the global generator is never touched."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_DEFAULT_SEED = 0


def make_generator(seed: int | None = None, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own: with a seed, or with hesse's fixed default seed."""
    return torch.Generator(device=device).manual_seed(_DEFAULT_SEED if seed is None else seed)


def normal(shape: Sequence[int], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Tensor:
    """Standard normal numbers (complex: unit variance in all) drawn on the generator's device."""
    return torch.randn(tuple(shape), dtype=dtype, device=generator.device, generator=generator).to(device)


def rademacher(shape: Sequence[int], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Tensor:
    """Random signs, drawn on the generator's device."""
    bits = torch.randint(0, 2, tuple(shape), device=generator.device, generator=generator)
    return (2 * bits - 1).to(device=device, dtype=dtype)
