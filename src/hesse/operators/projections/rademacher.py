"""Projection by a few random signs a column."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hesse.core.batching import slices
from hesse.core.space import Space
from hesse.operators.projections.base import Places, RandomProjection
from hesse.operators.projections.words import column_words, entry_words, start_of
from hesse.operators.sparse import Sparse

_ELEMENTS, _ENTRIES, _OFF = 2**20, 2**17, 16  # of vectors, and of the matrix, worked on at a time
_STREAM = 2
_BITS = 31


class RademacherProjection(RandomProjection):
    """Random signs over √s at s places of each column, zeros elsewhere (Kane and Nelson 2014, section 3, block construction).

    The rows are split into s parts as equal as can be, with one sign in each. Every column has norm one. With ``s = k`` the
    matrix is full of signs (Achlioptas 2003), with ``s = 1`` it is a count sketch.

    Squared norms have the variance ``2 (|v|⁴ - Σ vᵢ⁴) / k`` for every s that divides k (a little more for others); more signs
    make large errors rarer. Cost: s additions an entry of each vector. On a GPU the order of the additions is not fixed unless
    `torch.use_deterministic_algorithms` is on.

    Args:
        in_space, out_space, seed: as for `RandomProjection`.
        nonzeros: s, from 1 to k.
    """

    kind = "rademacher"

    def __init__(self, in_space: Space, out_space: Space, seed: int, nonzeros: int) -> None:
        super().__init__(in_space, out_space, seed)
        self.nonzeros = nonzeros

    @property
    def settings(self) -> dict[str, Any]:
        """What tells this projection from others of the same space."""
        return {**super().settings, "nonzeros": self.nonzeros}

    def width(self, count: int) -> int:
        """How many columns are worked on at a time; no power of two, whose multiples crowd in a cache."""
        return max(1, min(_ELEMENTS // max(count, 1), _ENTRIES // self.nonzeros) - _OFF)

    def _times(self, vectors: Tensor, places: Places) -> Tensor:
        return self._columns(places, vectors).mm(vectors)

    def _back(self, weights: Tensor, places: Places) -> Tensor:
        return self._columns(places, weights).T.mm(weights)

    def times_pieces(self, pieces: Tensor, vectors: Tensor, places: Tensor, count: int) -> Tensor:
        """As `RandomProjection.times_pieces`, entry by entry."""
        pieces, size = pieces.to(self.work_dtype), pieces.shape[1]
        result = pieces.new_zeros(count * self.rows)
        for some in slices(len(pieces), max(1, _ENTRIES // (size * self.nonzeros))):
            rows, signs = self._entries(places[some].flatten(), pieces)
            at = vectors[some].repeat_interleave(size)[:, None] * self.rows + rows
            result = result.index_add(0, at.flatten(), (pieces[some].reshape(-1, 1) * signs).flatten())
        return result.unflatten(0, (count, self.rows))

    def _columns(self, places: Places, like: Tensor) -> Sparse:
        """Some columns as an operator."""
        rows, signs = self._entries(places, like)
        columns = torch.arange(len(rows), device=like.device).repeat_interleave(self.nonzeros)
        return Sparse(torch.stack([rows.flatten(), columns]), signs.flatten(), len(rows), self.rows)

    def _entries(self, places: Places, like: Tensor) -> tuple[Tensor, Tensor]:
        """The rows and the values of the entries of some columns, ``[c, s]``."""
        s, device = self.nonzeros, like.device
        words = entry_words(column_words(start_of(self.seed, _STREAM), places, device), s)
        ends = torch.arange(s + 1, device=device) * self.rows // s
        rows = ends[:-1] + (((words & (2**_BITS - 1)) * ends.diff()) >> _BITS)
        return rows, (words >> 63).mul_(2).add_(1).to(like.dtype).mul_(s**-0.5)
