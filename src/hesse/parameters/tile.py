"""A tile of a Jacobian, held for many inner products: of every parameter its factors, or its rows where these are smaller.

A convolution's factors are its input and its output's cotangent at every position, often a hundred times as many numbers as a
row of its weight; and inner products of factors with shared positions form the rows anew for every pair of tiles. The other
way round, a wide linear layer's factors are far smaller than its rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from hesse.core import tree
from hesse.core.guard import Guard
from hesse.core.tree import Tree
from hesse.parameters import contractions
from hesse.parameters.contractions import Use
from hesse.parameters.contractions.gram import forms_rows
from hesse.parameters.contractions.joined import Joined, kinds_of
from hesse.parameters.contractions.uses import wide
from hesse.parameters.jacobian import ParameterJacobian
from hesse.parameters.source import Source, Take, stacked, without_autocast
from hesse.parameters.writing import fill
from hesse.rules.forms import Dense

Tile = list[ParameterJacobian]
Uses = list[dict[str, Use]]
_FORMED = 2  # times as large as factors rows may be, that every inner product would form anew
_GUARDED = (
    "A Gram matrix reads the tensors of its batches (and, for some weights, the parameters) until it is done.",
    "leave them alone meanwhile, or pass copies",
)


def held_tile(pieces: Iterable[ParameterJacobian], count: int) -> Tile:
    """The Jacobian of some samples, made of those of consecutive pieces; in several parts where pieces cannot be joined.

    Args:
        pieces: what is captured, in order; every piece is let go before the next one is asked for.
        count: samples of all pieces together.

    Cost: the rows that are written out are formed once, other factors copied once where there are several pieces.
    """
    pieces = iter(pieces)
    tables: dict[str, Tensor] = {}
    parts: list[_Part] = []
    start = 0
    for J in pieces:
        if J.facts.attached or not J.source.is_kept:
            return [J, *pieces]
        uses = J.source.collect()
        if not parts:
            tables = _tables(uses, J.params, count)
        _write(uses, {name: table[:, start : start + J.count] for name, table in tables.items()})
        if not parts or not parts[-1].takes(uses):
            parts.append(_Part(J, uses, start, count))
        parts[-1].add(uses, J.count)
        start += J.count
        del J, uses
    return [part.jacobian(tables) for part in parts]


class _Part:
    """Consecutive pieces that can be joined.

    Args:
        J: the Jacobian of the first one.
        uses: by root and name, those that are not written out.
        start: its first sample.
        count: samples of the tile.
    """

    def __init__(self, J: ParameterJacobian, uses: Uses, start: int, count: int) -> None:
        self._facts, self._params, self._paths, self._reads = J.facts, J.params, J.source.paths, J.source.reads
        self._start = self._stop = start
        self._kinds = kinds_of(uses) if J.count < count - start else None
        self._joined = None if self._kinds is None else Joined(uses, count - start)
        self._only = uses

    def takes(self, uses: Uses) -> bool:
        """Whether these can be joined to what is there."""
        return self._kinds is not None and kinds_of(uses) == self._kinds

    def add(self, uses: Uses, count: int) -> None:
        """Take the next piece, of so many samples."""
        if self._joined is not None:
            self._joined.add(uses)
            self._only = []
        self._stop += count

    def jacobian(self, tables: dict[str, Tensor]) -> ParameterJacobian:
        """The Jacobian of all pieces."""
        uses = self._only if self._joined is None else self._joined.uses()
        rows = {name: table[:, self._start : self._stop].flatten(0, 1) for name, table in tables.items()}
        count = self._stop - self._start
        facts = replace(self._facts, shape=torch.Size((count, *self._facts.shape[1:])))
        return ParameterJacobian(Held(uses, rows, count, self._paths, self._reads), facts, self._params)


class Held(Source):
    """Uses by root, and rows that were written out.

    Args:
        uses: by root, the uses of the parameters that were not written out.
        rows: name -> rows ``[roots * n, size]`` of the others, one root after the other.
        count: n.
        paths: name -> how the rows were found.
        reads: what the uses read besides.
    """

    is_kept = True

    def __init__(
        self, uses: Uses, rows: dict[str, Tensor], count: int, paths: dict[str, str], reads: tuple[Tensor, ...]
    ) -> None:
        self.roots, self.count, self.reads = len(uses), count, reads
        self._uses, self._rows, self._paths = uses, rows, paths
        own = list(contractions.tensors_in([list(root.values()) for root in uses]))
        self.held_bytes = sum({t.data_ptr(): t.nbytes for t in (*own, *rows.values())}.values())
        self._guard = Guard([*own, *reads])

    @property
    def paths(self) -> dict[str, str]:
        """Name -> path."""
        return self._paths

    @property
    def stacked_bytes(self) -> int:
        """Bytes of the copies that `stacked` makes: what roots share is copied for each of them."""
        every = [use for root in self._uses for use in root.values()] if self.roots > 1 else []
        return sum(tensor.nbytes for use in every for tensor in contractions.tensors_in(use))

    def _visit(self, take: Take) -> None:
        """Hand over what is held."""
        self._guard.check(*_GUARDED)
        for root, uses in enumerate(self._uses):
            for name, rows in self._rows.items():
                take(root, name, Dense(rows[root * self.count : (root + 1) * self.count]))
            for name, use in uses.items():
                take(root, name, use)

    def stacked(self, shapes: dict[str, torch.Size], zero: Tensor) -> dict[str, Use]:
        """The uses of every parameter in all roots; of what was written out no copy is made."""
        self._guard.check(*_GUARDED)
        return {**{name: Dense(rows) for name, rows in self._rows.items()}, **stacked(self._uses, shapes, zero)}


def _tables(uses: Uses, params: Tree, count: int) -> dict[str, Tensor]:
    """``[roots, count, size]`` to be written to, of the parameters whose rows are to be held instead of their factors."""
    roots = len(uses)
    every = {name: [root[name] for root in uses if name in root] for name, _ in tree.named_leaves(params)}
    users = Counter(place for found in every.values() for use in found for place in _bytes_of(use))
    tables = {}
    for name, leaf in tree.named_leaves(params):
        found, rows = every[name], wide(leaf.detach().flatten()[:0])
        factors = sum(taken / users[place] for use in found for place, taken in _bytes_of(use).items())
        times = _FORMED if any(forms_rows(use) for use in found) else 1
        if found and roots * found[0].count * leaf.numel() * rows.itemsize <= times * factors:
            tables[name] = rows.new_empty(roots, count, leaf.numel())
    return tables


def _bytes_of(use: Use) -> dict[int, int]:
    """Bytes of every tensor that a use is made of, by its place in memory."""
    return {tensor.data_ptr(): tensor.nbytes for tensor in contractions.tensors_in(use)}


def _write(uses: Uses, tables: Mapping[str, Tensor]) -> None:
    """Write rows into their tables ``[roots, n, size]``, and let their factors go."""
    with without_autocast():
        for name, table in tables.items():
            for root, target in zip(uses, table, strict=True):
                use = root.pop(name, None)
                if use is None:
                    target.zero_()
                else:
                    fill(target, use)
