"""An exchange that was the same twice in a row is expected a third time: its header travels in the payload's all-reduce.

Every process then begins its next exchange with a buffer of the agreed size, whatever it is asked. A few numbers behind the
payload say whether all processes sent what is expected, and were given the same; if not, the sum is thrown away, and the
exchange begins anew as any other. So buffers of different sizes never meet.

The numbers have constant size: that p processes have the same hash is seen from the sum of its pieces ``h`` and of their
squares, since ``p sum h^2 = (sum h)^2`` for equal ones alone (Cauchy, Schwarz). The pieces are short enough that float32 holds
both sums exactly, so that all processes come to the same verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_BYTES = 2**18  # of a payload, for each process: beyond, a wasted one costs more than the header that is saved
_HASH_BITS, _EXACT_BITS = 52, 24  # float32 counts to 2^24


@dataclass(frozen=True)
class Repeat:
    """An exchange that may come again.

    Attributes:
        asked: what, by which link.
        numbers: of the payload.
        dtype, device: of the buffer.
        mass: of this process.
        total: the masses of all processes.
    """

    asked: str
    numbers: int
    dtype: torch.dtype
    device: torch.device
    mass: float
    total: float


def may_repeat(ranks: int, buffers: Sequence[Tensor]) -> bool:
    """Whether an exchange of these buffers is worth expecting."""
    return len(buffers) == 1 and buffers[0].nbytes <= ranks * MOST_BYTES


def tail(ranks: int, number: int | None, like: Tensor) -> Tensor:
    """What stands behind the payload.

    Args:
        ranks: processes.
        number: a hash below 2^52 of what is asked and given; None: this process has something else to send.
        like: a tensor of the payload's dtype and device.
    """
    bits, count = _pieces(ranks)
    if number is None:
        return like.new_zeros(1 + 2 * count)
    pieces = [(number >> (bits * i)) % 2**bits for i in range(count)]
    return torch.tensor([1, *pieces, *(h * h for h in pieces)], dtype=like.dtype).to(like.device)


def all_alike(ranks: int, total: Tensor) -> bool:
    """Whether all processes sent the same number: from the sum of what stands behind their payloads."""
    sent, *sums = (int(value) for value in total.tolist())
    first, second = sums[: len(sums) // 2], sums[len(sums) // 2 :]
    return sent == ranks and all(ranks * square == h * h for h, square in zip(first, second, strict=True))


def _pieces(ranks: int) -> tuple[int, int]:
    """Bits of a piece, and how many there are: the sum of the squares stays exact."""
    bits = max((_EXACT_BITS - (ranks - 1).bit_length()) // 2, 1)
    return bits, -(-_HASH_BITS // bits)
