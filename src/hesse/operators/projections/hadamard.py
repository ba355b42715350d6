"""Projection by fast Walsh-Hadamard transforms between random signs."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from hesse.core.batching import slices
from hesse.operators.projections.base import Places, RandomProjection
from hesse.operators.projections.words import column_words, distinct, start_of

_ELEMENTS = 2**18  # of vectors, worked on at a time: what stays in a core's cache
_STREAM, _SAMPLE = 3, 4
_FACTOR = 5  # the binary logarithm of the largest matrix that a transform is made of


class HadamardProjection(RandomProjection):
    """Random signs, a Walsh-Hadamard transform, random signs again, summed over blocks of columns; then some of the rows.

    ``P = (m/k)^½ R [D'₁ H D₁, D'₂ H D₂, ...]`` with diagonals of random signs D, the orthogonal Walsh-Hadamard matrix H of
    order m, the smallest power of two that is at least k, and R that draws k of the m rows without repetition (all where k is
    a power of two): the block SRHT of Balabanov, Beaupère, Grigori and Lederer (2023), which goes back to the fast
    Johnson-Lindenstrauss transform (Ailon and Chazelle 2009; Tropp 2011). Every column has norm one, columns of one block are
    orthogonal where k is a power of two.

    Squared norms have at most the variance ``2 (|v|⁴ - Σ vᵢ⁴) / k``. Cost: ``log₂ m`` additions an entry of each vector, done
    as products with matrices of order at most 32.
    """

    kind = "fjlt"

    @property
    def order(self) -> int:
        """m, the order of the transforms."""
        return 1 << (self.rows - 1).bit_length()

    def width(self, count: int) -> int:
        """How many columns are worked on at a time."""
        return max(_ELEMENTS // (max(count, 1) * self.order), 1) * self.order

    @property
    def grain(self) -> int:
        """The order of the transforms."""
        return self.order

    def _times(self, vectors: Tensor, places: Places) -> Tensor:
        blocks, vectors = self._in_blocks(vectors, places)
        first, second = self._signs(blocks, vectors)
        mixed = _transform(vectors.unflatten(1, first.shape) * first)
        whole = (mixed * second).sum(1)
        return self._sampled(whole) * self.rows**-0.5

    def _back(self, weights: Tensor, places: Places) -> Tensor:
        blocks, at = self._blocks_of(places, weights.device)
        first, second = self._signs(blocks, weights)
        whole = weights * self.rows**-0.5
        if self.order != self.rows:
            sample = self._sample(weights.device)
            whole = weights.new_zeros(len(weights), self.order).index_copy(1, sample, whole)
        return (_transform(whole[:, None] * second) * first).flatten(1)[:, at]

    def times_pieces(self, pieces: Tensor, vectors: Tensor, places: Tensor, count: int) -> Tensor:
        """As `RandomProjection.times_pieces`, by the blocks that a vector has pieces in."""
        m, total = self.order, -(-self.in_space.dim // self.order)
        pieces = pieces.to(self.work_dtype)
        whole = pieces.new_zeros(count, m)
        for some in slices(len(pieces), max(1, _ELEMENTS // max(m, pieces.shape[1]))):
            keys, which = torch.unique(vectors[some, None] * total + places[some] // m, return_inverse=True)
            at = (which * m + places[some] % m).flatten()
            blocks = pieces.new_zeros(len(keys) * m).index_add(0, at, pieces[some].flatten()).unflatten(0, (-1, m))
            first, second = self._signs(keys % total, pieces)
            whole = whole.index_add(0, keys // total, _transform(blocks * first) * second)
        return self._sampled(whole) * self.rows**-0.5

    def _in_blocks(self, vectors: Tensor, places: Places) -> tuple[Places, Tensor]:
        """The blocks that some columns are in, and the vectors with zeros at the blocks' other columns."""
        blocks, at = self._blocks_of(places, vectors.device)
        count = (blocks.stop - blocks.start if isinstance(blocks, slice) else len(blocks)) * self.order
        if isinstance(at, slice):
            return blocks, F.pad(vectors, (at.start, count - at.stop))
        return blocks, vectors.new_zeros(len(vectors), count).index_add(1, at, vectors)

    def _blocks_of(self, places: Places, device: torch.device) -> tuple[Places, Places]:
        """The blocks that some columns are in, and where the columns are among those of the blocks."""
        m = self.order
        if isinstance(places, slice):
            first = places.start // m
            return slice(first, max(-(-places.stop // m), first)), slice(places.start - first * m, places.stop - first * m)
        blocks, which = torch.unique(places.to(device) // m, return_inverse=True)
        return blocks, which * m + places.to(device) % m

    def _signs(self, blocks: Places, like: Tensor) -> tuple[Tensor, Tensor]:
        """The signs before and after the transforms of some blocks, ``[blocks, m]``."""
        m = self.order
        if isinstance(blocks, slice):
            places: Places = slice(blocks.start * m, blocks.stop * m)
        else:
            places = (blocks[:, None] * m + torch.arange(m, device=like.device)).flatten()
        words = column_words(start_of(self.seed, _STREAM), places, like.device).unflatten(0, (-1, m))
        first, second = ((bits * 2 + 1).to(like.dtype) for bits in (words >> 63, (words << 1) >> 63))
        return first, second

    def _sampled(self, whole: Tensor) -> Tensor:
        """The chosen rows of ``[n, m]``."""
        return whole if self.order == self.rows else whole.index_select(1, self._sample(whole.device))

    def _sample(self, device: torch.device) -> Tensor:
        return distinct(start_of(self.seed, _SAMPLE), self.rows, self.order, device)


def _transform(vectors: Tensor) -> Tensor:
    """The Walsh-Hadamard transform along the last axis (entries ±1), as a Kronecker product of small matrices."""
    bits = vectors.shape[-1].bit_length() - 1
    parts = -(-bits // _FACTOR)
    done, left = 1, 1 << bits
    for part in range(parts):
        factor = 1 << (bits * (part + 1) // parts - bits * part // parts)
        left //= factor
        matrix = _hadamard(factor, vectors)
        split = vectors.reshape(*vectors.shape[:-1], left, factor, done)
        vectors = (split.squeeze(-1) @ matrix if done == 1 else matrix @ split).reshape(vectors.shape)
        done *= factor
    return vectors


def _hadamard(order: int, like: Tensor) -> Tensor:
    """The symmetric matrix of signs ``(-1)^(number of ones in i & j)``."""
    bits = torch.arange(order, device=like.device)
    both, odd = bits[:, None] & bits, torch.zeros(order, order, dtype=torch.int64, device=like.device)
    for shift in range(int(math.log2(order))):
        odd ^= both >> shift & 1
    return (1 - 2 * odd).to(like.dtype)
