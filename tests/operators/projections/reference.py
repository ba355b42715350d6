"""Random projections written out entry by entry in plain Python, from their definitions. Nothing here imports hesse."""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import Tensor

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
LEVELS = 2**16


def mixed(word: int) -> int:
    """splitmix64's output function (Steele, Lea, Flood 2014) of a 64-bit word."""
    word &= MASK
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & MASK
    return word ^ (word >> 31)


def start(seed: int, stream: int) -> int:
    """The word that a kind of projection starts at."""
    return mixed(mixed(seed) + stream)


def column(seed: int, stream: int, place: int) -> int:
    """The word of a column."""
    return mixed(start(seed, stream) + (place + 1) * GOLDEN)


def entry(word: int, number: int) -> int:
    """One of the words that follow from a column's."""
    return mixed(word + (number + 1) * GOLDEN)


def gaussian(k: int, dim: int, seed: int) -> Tensor:
    """Quantiles of the normal distribution by 16 bits; the upper half of the levels stands for negative numbers of 16 bits."""
    normal = NormalDist()
    squares = sum(normal.inv_cdf((level + 0.5) / LEVELS) ** 2 for level in range(LEVELS)) / LEVELS
    P = torch.zeros(k, dim, dtype=torch.float64)
    for c in range(dim):
        word = column(seed, 1, c)
        for r in range(k):
            level = entry(word, r // 4) >> 16 * (r % 4) & (LEVELS - 1)
            P[r, c] = normal.inv_cdf((level + 0.5) / LEVELS) / (squares * k) ** 0.5
    return P


def rademacher(k: int, dim: int, seed: int, nonzeros: int) -> Tensor:
    """A sign in each of `nonzeros` parts of every column."""
    P = torch.zeros(k, dim, dtype=torch.float64)
    for c in range(dim):
        for j in range(nonzeros):
            word = entry(column(seed, 2, c), j)
            first, stop = j * k // nonzeros, (j + 1) * k // nonzeros
            sign = -1 if word >> 63 else 1
            P[first + ((word & (2**31 - 1)) * (stop - first) >> 31), c] = sign / nonzeros**0.5
    return P


def fjlt(k: int, dim: int, seed: int) -> Tensor:
    """Signs, Walsh-Hadamard matrix, signs in each block, and the sampled rows of all blocks."""
    order = 1
    while order < k:
        order *= 2
    chosen = sorted(sorted(range(order), key=lambda r: _signed(entry(start(seed, 4), r)))[:k])
    P = torch.zeros(k, dim, dtype=torch.float64)
    for c in range(dim):
        block = c // order * order
        for i, r in enumerate(chosen):
            first = -1 if column(seed, 3, c) >> 63 else 1
            second = -1 if column(seed, 3, block + r) >> 62 & 1 else 1
            P[i, c] = first * second * (-1) ** (r & c % order).bit_count() / k**0.5
    return P


def _signed(word: int) -> int:
    return word - 2**64 if word >> 63 else word


def matrix(kind: str, k: int, dim: int, seed: int, nonzeros: int | None = None) -> Tensor:
    """The projection ``[k, dim]`` in float64."""
    if kind == "rademacher":
        return rademacher(k, dim, seed, min(4, k) if nonzeros is None else nonzeros)
    return gaussian(k, dim, seed) if kind == "gaussian" else fjlt(k, dim, seed)
