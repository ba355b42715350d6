"""Few inputs an element: as many maps from elements to inputs, which stencils, views and element-wise ops leave as few."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any

import scipy.sparse
import torch
from torch import Tensor

from hesse.autodiff.dependence.sets.base import Sets, require_room
from hesse.autodiff.dependence.sets.entries import Entries

MOST = 64  # maps
_PLACE = 4  # bytes of an element in a map
_PROBES = 12  # places at which maps are compared before they are compared whole


class Few(Sets):
    """Sets as maps: element i depends on ``map[i]`` for each of the maps.

    Against compressed rows this saves the building of rows at every op: a union is a list of two, a movement a gather, and a
    million unknowns take a few milliseconds an op. Maps that are equal are kept once.

    Args:
        maps: each ``[count]``, int32, contiguous; -1 for none.
        count, inputs: how many elements and inputs.
    """

    rank = 0

    def __init__(self, maps: Sequence[Tensor], count: int, inputs: int) -> None:
        self.maps, self.count, self.inputs = tuple(maps), count, inputs

    @staticmethod
    def identity(count: int, inputs: int, start: int = 0) -> Few:
        """Each element on one input, from `start` on."""
        return Few([torch.arange(start, start + count, dtype=torch.int32)], count, inputs)

    @cached_property
    def _prints(self) -> tuple[tuple[int, ...], ...]:
        probes = _probes(self.count)
        return tuple(tuple(m.index_select(0, probes).tolist()) for m in self.maps)

    def take(self, numbers: Tensor) -> Sets:
        if not self.count or not len(numbers) or int(numbers.max()) < 0:
            return self.empty(len(numbers))
        if int(numbers.min()) >= 0:
            return Few([m.index_select(0, numbers) for m in self.maps], len(numbers), self.inputs)
        none, safe = numbers < 0, numbers.clamp(min=0)
        return Few([m.index_select(0, safe).masked_fill_(none, -1) for m in self.maps], len(numbers), self.inputs)

    def union(self, other: Sets) -> Sets:
        assert isinstance(other, Few)
        return _distinct([*zip(self._prints, self.maps, strict=True), *zip(other._prints, other.maps, strict=True)], self)

    def grouped(self, groups: Tensor, size: int) -> Sets:
        kept = groups >= 0
        own, members = (groups, torch.arange(self.count)) if bool(kept.all()) else (groups[kept], kept.nonzero()[:, 0])
        counts = torch.bincount(own, minlength=size)
        most = int(counts.max()) if len(own) else 0
        if most <= 1:
            return self.take(torch.full((size,), -1).index_copy_(0, own, members))
        if len(self.maps) == 1 and (one := _constant(self.maps[0][members], own, size)) is not None:
            return Few([one], size, self.inputs)
        if most * len(self.maps) > 4 * MOST:
            return self.entries().grouped(groups, size)
        require_room(_PLACE * most * len(self.maps) * size, size)
        order = torch.argsort(own, stable=True)
        ranks = torch.arange(len(own)) - (counts.cumsum(0) - counts)[own[order]]
        parts = []
        for rank in range(most):
            now = order[ranks == rank]
            found = self.take(torch.full((size,), -1).index_copy_(0, own[now], members[now]))
            assert isinstance(found, Few)
            parts += zip(found._prints, found.maps, strict=True)
        return _distinct(parts, Few([], size, self.inputs))

    def then(self, other: Sets) -> Sets:
        if not isinstance(other, Few):
            return self.entries().then(other)
        pairs = itertools.zip_longest(self.maps, other.maps)
        return Few([torch.cat([_none(self.count) if a is None else a, _none(other.count) if b is None else b])
                    for a, b in pairs], self.count + other.count, self.inputs)  # fmt: skip

    def empty(self, count: int) -> Sets:
        return Few([], count, self.inputs)

    def strided(self, shape: Sequence[int], stride: Sequence[int], offset: int) -> Sets:
        views = (m.as_strided(tuple(shape), tuple(stride), int(m.storage_offset()) + offset) for m in self.maps)
        maps = [view.reshape(-1).contiguous() for view in views]
        return Few(maps, torch.Size(shape).numel(), self.inputs)

    def written(self, new: Sets | None, shape: Sequence[int], stride: Sequence[int], offset: int) -> Sets:
        if new is not None and not isinstance(new, Few):
            return super().written(new, shape, stride, offset)
        maps = []
        for old, own in itertools.zip_longest(self.maps, new.maps if new is not None else ()):
            m = _none(self.count) if old is None else old.clone()
            view = m.as_strided(tuple(shape), tuple(stride), offset)
            maps.append(m)
            view.fill_(-1) if own is None else view.copy_(own.view(tuple(shape)))
        return Few(maps, self.count, self.inputs)

    def spread(self, shape: Sequence[int], onto: Sequence[int]) -> Sets:
        maps = [m.view(tuple(shape)).expand(tuple(onto)).reshape(-1).contiguous() for m in self.maps]
        return Few(maps, torch.Size(onto).numel(), self.inputs)

    def entries(self) -> Sets:
        """As compressed rows."""
        return Entries.of(self.compressed())

    def compressed(self) -> Any:
        shape = (self.count, self.inputs)
        if not self.maps or not self.count:
            return scipy.sparse.csr_array(shape, dtype=bool)
        require_room((2 * _PLACE + 1) * len(self.maps) * self.count, self.count)
        ordered, valid = _in_order(self.maps)
        counts = sum((v.to(torch.int32) for v in valid[1:]), valid[0].to(torch.int32))
        ends = torch.zeros(self.count + 1, dtype=torch.int64)
        torch.cumsum(counts, 0, out=ends[1:])
        total = int(ends[-1])
        columns = torch.empty(total + 1, dtype=torch.int32)  # what is not valid goes to the last place
        if total == self.count * len(ordered):
            torch.stack(ordered, -1, out=columns[:-1].view(self.count, -1))
        else:
            slot = ends[:-1].clone()
            for m, v in zip(ordered, valid, strict=True):
                columns.scatter_(0, torch.where(v, slot, total), m)
                slot += v
        ends = ends if total > torch.iinfo(torch.int32).max else ends.to(torch.int32)
        parts = (torch.ones(total, dtype=torch.bool).numpy(), columns[:-1].numpy(), ends.numpy())
        matrix = scipy.sparse.csr_array(parts, shape=shape)
        matrix.has_canonical_format = True
        return matrix


def _in_order(maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Maps such that the inputs of each element ascend, and which of them are neither missing nor there before.

    By a sorting network (Batcher, Sorting networks and their applications, 1968): whole maps are compared at a time.
    """
    ordered = list(maps)
    for i, j in _network(len(ordered)):
        a, b = ordered[i], ordered[j]
        ordered[i], ordered[j] = torch.minimum(a, b), torch.maximum(a, b)
    valid = [ordered[0] >= 0, *((b >= 0) & (b != a) for a, b in itertools.pairwise(ordered))]
    return ordered, valid


def _network(size: int) -> Iterator[tuple[int, int]]:
    """Pairs to be put in order, one after the other, for as many values."""
    p = 1
    while p < size:
        k = p
        while k >= 1:
            for j in range(k % p, size - k, 2 * k):
                for i in range(min(k, size - j - k)):
                    if (i + j) // (2 * p) == (i + j + k) // (2 * p):
                        yield i + j, i + j + k
            k //= 2
        p *= 2


def _distinct(maps: Iterable[tuple[tuple[int, ...], Tensor]], like: Few) -> Sets:
    """Maps that differ, with their values at a few places; brought together, or as compressed rows, if they are too many."""
    kept: dict[tuple[int, ...], list[Tensor]] = {}
    for key, m in maps:
        alike = kept.setdefault(key, [])
        if not any(m is other or m.data_ptr() == other.data_ptr() or torch.equal(m, other) for other in alike):
            alike.append(m)
    found = [m for alike in kept.values() for m in alike]
    if len(found) > MOST:
        found = _compact(found)
    sets = Few(found, like.count, like.inputs)
    return sets if len(found) <= MOST else sets.entries()


def _compact(maps: list[Tensor]) -> list[Tensor]:
    """As few maps as the element with the most inputs has."""
    ordered, valid = _in_order(maps)
    ordered, _ = _in_order([m.masked_fill(~v, -1) for m, v in zip(ordered, valid, strict=True)])
    return [m for m in ordered if bool((m >= 0).any())]


def _constant(values: Tensor, groups: Tensor, size: int) -> Tensor | None:
    """``[size]``: the input on which all elements of a group depend, where that is one and the same."""
    high = torch.full((size,), -1, dtype=torch.int32).scatter_reduce_(0, groups, values, "amax")
    limit = torch.iinfo(torch.int32).max
    low = torch.full((size,), limit, dtype=torch.int32)
    low.scatter_reduce_(0, groups, torch.where(values < 0, limit, values), "amin")
    return high if bool(((low == high) | (high < 0)).all()) else None


@lru_cache(256)
def _probes(count: int) -> Tensor:
    return torch.linspace(0, max(0, count - 1), min(_PROBES, count), dtype=torch.float64).long()


def _none(count: int) -> Tensor:
    return torch.full((count,), -1, dtype=torch.int32)
