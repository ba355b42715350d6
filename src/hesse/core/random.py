"""Random numbers from explicit generators or from the keys of samples; the global generator is never touched."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hesse.core.errors import LeafError
from hesse.core.mixing import counters, mix, mix_number

_DEFAULT_SEED = 0
_BITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


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


def seed_of(generator: torch.Generator | None) -> int:
    """A seed in ``[0, 2^63 - 1)`` drawn from a generator (None: from a fresh one with hesse's default seed)."""
    source = make_generator() if generator is None else generator
    return int(torch.randint(0, 2**63 - 1, (), device=source.device, generator=source))


def hashed_uniform(
    keys: Tensor, seed: int, stream: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """Numbers in [0, 1) that depend on the sample's key, on seed, stream and place in the sample, and on nothing else.

    So a sample gets the same numbers in whatever batch and order it comes. The generator is splitmix64 (Steele, Lea, Flood,
    OOPSLA 2014), started at a mix of key, seed and stream.

    Args:
        keys: int64 ``[n]``, `hesse.core.fingerprint.sample_hashes` of the batch.
        seed: of the whole computation (`seed_of`).
        stream: tells apart the draws of one computation.
        shape: of one sample's numbers.
        dtype: a real floating type; numbers are multiples of 2^-53, 2^-24, 2^-11 (float16) or 2^-8 (bfloat16).
        device: where the result goes.

    Returns:
        ``[n, *shape]``.

    Raises:
        LeafError: a dtype of another kind.
    """
    if dtype not in _BITS:
        raise LeafError("Uniform numbers are real.", str(dtype), "ask for a real floating dtype and convert")
    bits = _BITS[dtype]
    start = mix(keys.to(device=device, dtype=torch.int64, copy=True).bitwise_xor_(mix_number(mix_number(seed) + stream)))
    places = counters(0, math.prod(shape), start.device)
    words = mix(start[:, None] + places)
    words = words.bitwise_right_shift_(64 - bits).bitwise_and_(2**bits - 1)
    return words.to(dtype).mul_(2.0**-bits).reshape(len(keys), *shape)
