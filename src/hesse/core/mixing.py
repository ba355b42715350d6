"""The 64-bit mix of splitmix64 (Steele, Lea, Flood, OOPSLA 2014) on int64 tensors, whose arithmetic wraps around."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
_STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None))


def signed(number: int) -> int:
    """The int64 with the same lowest 64 bits."""
    number &= _MASK
    return number - 2**64 if number >= 2**63 else number


def mix(words: Tensor) -> Tensor:
    """Every int64 word mapped one to one to a word whose bits look random; writes over `words` and returns it."""
    for shift, factor in _STEPS:
        words.bitwise_xor_((words >> shift).bitwise_and_(2 ** (64 - shift) - 1))  # a logical shift: >> keeps the sign
        if factor is not None:
            words.mul_(signed(factor))
    return words


def mix_number(number: int) -> int:
    """`mix` of one Python integer (its lowest 64 bits), as a signed 64-bit integer."""
    number &= _MASK
    for shift, factor in _STEPS:
        number ^= number >> shift
        number = number * (1 if factor is None else factor) & _MASK
    return signed(number)


def counters(first: int, count: int, device: torch.device) -> Tensor:
    """``GOLDEN * (first + 1), GOLDEN * (first + 2), ...`` as int64 ``[count]``: what splitmix64 counts by."""
    return torch.arange(first + 1, first + count + 1, dtype=torch.int64, device=device).mul_(signed(GOLDEN))
