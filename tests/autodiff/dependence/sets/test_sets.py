"""Every representation against Python's own sets."""

from __future__ import annotations

import pytest
import scipy.sparse
import torch
from torch import Tensor

from hesse.autodiff.dependence.sets.base import Sets, merged
from hesse.autodiff.dependence.sets.bits import Bits
from hesse.autodiff.dependence.sets.entries import Entries
from hesse.autodiff.dependence.sets.few import MOST, Few
from hesse.autodiff.dependence.sets.spans import Spans
from hesse.core.errors import MemoryBudgetError

INPUTS = 70  # more than a word of bits
Plain = list[set[int]]


def drawn(count: int, most: int, seed: int) -> Plain:
    """Sets of up to so many inputs, some of them empty."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0, most + 1, (count,), generator=generator).tolist()
    return [set(torch.randint(0, INPUTS, (size,), generator=generator).tolist()) for size in sizes]


def few(sets: Plain) -> Few:
    width = max((len(s) for s in sets), default=0)
    lines = [sorted(s) + [-1] * (width - len(s)) for s in sets]
    return Few([torch.tensor([line[k] for line in lines], dtype=torch.int32) for k in range(width)], len(sets), INPUTS)


def matrix(sets: Plain) -> scipy.sparse.csr_array:
    pairs = [(i, j) for i, s in enumerate(sets) for j in sorted(s)]
    rows, columns = [i for i, _ in pairs], [j for _, j in pairs]
    return scipy.sparse.csr_array(([True] * len(pairs), (rows, columns)), shape=(len(sets), INPUTS), dtype=bool)


MAKERS = {"few": few, "entries": lambda s: Entries(matrix(s)), "bits": lambda s: Bits.of(matrix(s))}


def plain(sets: Sets) -> Plain:
    found = sets.compressed()
    lines = [found.indices[a:b].tolist() for a, b in zip(found.indptr[:-1], found.indptr[1:], strict=True)]
    assert all(line == sorted(set(line)) for line in lines)
    return [set(line) for line in lines]


def spanned(sets: Plain) -> list[tuple[int, int]]:
    return [(min(s), max(s)) if s else (-1, -1) for s in sets]


def spans(sets: Plain) -> Spans:
    low = torch.tensor([min(s) if s else torch.iinfo(torch.int32).max for s in sets], dtype=torch.int32)
    return Spans(low, torch.tensor([max(s, default=-1) for s in sets], dtype=torch.int32), INPUTS)


def found(sets: Sets) -> list[tuple[int, int]] | Plain:
    if isinstance(sets, Spans):
        pairs = zip(sets.low.tolist(), sets.high.tolist(), strict=True)
        return [(low, high) if high >= 0 else (-1, -1) for low, high in pairs]
    return plain(sets)


def expected(sets: Plain, like: Sets) -> list[tuple[int, int]] | Plain:
    return spanned(sets) if isinstance(like, Spans) else sets


KINDS = pytest.mark.parametrize("kind", [*MAKERS, "spans"])


def make(kind: str, sets: Plain) -> Sets:
    return spans(sets) if kind == "spans" else MAKERS[kind](sets)


def taken(sets: Plain, numbers: Tensor) -> Plain:
    return [sets[i] if i >= 0 else set() for i in numbers.tolist()]


@KINDS
@pytest.mark.parametrize("seed", range(3))
def test_elements_are_taken_in_any_order(kind: str, seed: int) -> None:
    sets = drawn(11, 4, seed)
    numbers = torch.tensor([3, -1, 0, 10, 3, 3, -1, 7])
    own = make(kind, sets)
    assert found(own.take(numbers)) == expected(taken(sets, numbers), own)
    assert found(own.take(numbers[numbers >= 0])) == expected(taken(sets, numbers[numbers >= 0]), own)
    assert found(own.take(torch.full((3,), -1))) == expected([set()] * 3, own)


@KINDS
@pytest.mark.parametrize("most", [1, 4, 40])
def test_a_union_is_by_element(kind: str, most: int) -> None:
    a, b = drawn(9, most, 1), drawn(9, most, 2)
    own = make(kind, a)
    both = merged(own, make(kind, b))
    assert both is not None
    assert found(both) == expected([s | t for s, t in zip(a, b, strict=True)], own)
    assert merged(own, None) is own
    assert merged(None, own) is own


@pytest.mark.parametrize("first", MAKERS)
@pytest.mark.parametrize("second", MAKERS)
def test_representations_meet(first: str, second: str) -> None:
    a, b = drawn(9, 5, 3), drawn(9, 5, 4)
    both = merged(make(first, a), make(second, b))
    assert both is not None
    assert plain(both) == [s | t for s, t in zip(a, b, strict=True)]
    assert plain(make(first, a).then(make(second, b))) == a + b
    written = make(first, a).written(make(second, b[:4]), (2, 2), (4, 1), 1)
    assert plain(written) == [a[0], b[0], b[1], a[3], a[4], b[2], b[3], a[7], a[8]]


@KINDS
@pytest.mark.parametrize("most", [1, 3, 40])
def test_groups_hold_what_their_members_hold(kind: str, most: int) -> None:
    sets = drawn(12, most, 5)
    groups = torch.tensor([2, 0, -1, 2, 2, 4, 0, -1, 2, 5, 4, 2])
    own = make(kind, sets)
    united = [set().union(*(s for s, g in zip(sets, groups.tolist(), strict=True) if g == k)) for k in range(7)]
    assert found(own.grouped(groups, 7)) == expected(united, own)
    moved = torch.tensor([3, 1, -1, 0, 2, 5, 6, -1, 7, 4, 9, 8])
    united = [set().union(*(s for s, g in zip(sets, moved.tolist(), strict=True) if g == k)) for k in range(10)]
    assert found(own.grouped(moved, 10)) == expected(united, own)


def test_members_that_depend_on_the_same_one_stay_one_map() -> None:
    sets = few([{3}, {3}, {5}, set(), {5}]).grouped(torch.tensor([0, 0, 1, 1, 1]), 2)
    assert isinstance(sets, Few)
    assert len(sets.maps) == 1
    assert plain(sets) == [{3}, {5}]


@KINDS
def test_a_member_of_several_groups(kind: str) -> None:
    sets = drawn(6, 4, 6)
    members, groups = torch.tensor([0, 1, 1, 5, 3, 3, 0]), torch.tensor([2, 2, 0, 0, 0, 3, 3])
    own = make(kind, sets)
    united = [
        set().union(*(sets[m] for m, g in zip(members.tolist(), groups.tolist(), strict=True) if g == k)) for k in range(4)
    ]
    assert found(own.paired(members, groups, 4)) == expected(united, own)


@KINDS
def test_views_and_what_is_written_through_them(kind: str) -> None:
    sets, new = drawn(12, 4, 7), drawn(4, 4, 8)
    own, view = make(kind, sets), ((2, 2), (4, 2), 1)
    places = torch.arange(12).as_strided(*view).flatten().tolist()
    assert found(own.strided(*view)) == expected([sets[i] for i in places], own)
    after = list(sets)
    for place, s in zip(places, new, strict=True):
        after[place] = s
    assert found(own.written(make(kind, new), *view)) == expected(after, own)
    assert found(own) == expected(sets, own)
    for place in places:
        after[place] = set()
    assert found(own.written(None, *view)) == expected(after, own)


@KINDS
def test_broadcasting_and_other_units(kind: str) -> None:
    sets = drawn(6, 3, 9)
    own = make(kind, sets)
    wide = [sets[2 * i + k] for i in range(3) for _ in range(4) for k in range(2)]
    assert found(own.spread((3, 1, 2), (3, 4, 2))) == expected(wide, own)
    assert found(own.regrained(8, 4)) == expected([s for s in sets for _ in range(2)], own)
    assert found(own.regrained(8, 16)) == expected([sets[i] | sets[i + 1] for i in (0, 2, 4)], own)


@KINDS
def test_nothing_at_all(kind: str) -> None:
    own = make(kind, [])
    assert found(own) == []
    assert found(own.take(torch.zeros(0, dtype=torch.int64))) == []
    assert found(own.then(make(kind, [{1}]))) == expected([{1}], own)
    assert found(own.grouped(torch.zeros(0, dtype=torch.int64), 2)) == expected([set(), set()], own)


def test_many_maps_are_brought_together_or_become_rows() -> None:
    """More maps than inputs of any one element shrink to as many as needed; real ones leave the representation."""
    sets: Sets = Few([], 100, 1000)
    for k in range(100):
        m = torch.full((100,), -1, dtype=torch.int32)
        m[k] = k
        sets = sets.union(Few([m], 100, 1000))
    assert isinstance(sets, Few)
    assert len(sets.maps) <= MOST
    assert plain(sets) == [{k} for k in range(100)]
    for k in range(100):
        after = merged(sets, Few([(torch.arange(100, dtype=torch.int32) + k) % 1000], 100, 1000))
        assert after is not None
        sets = after
    assert not isinstance(sets, Few)
    assert plain(sets) == [{i, *(i + k for k in range(100))} for i in range(100)]


def test_full_rows_become_bits() -> None:
    sets = Few.identity(500, 500).grouped(torch.zeros(500, dtype=torch.int64), 1).take(torch.zeros(500, dtype=torch.int64))
    assert isinstance(sets, Bits)
    assert plain(sets) == [set(range(500))] * 500


def test_one_full_element_among_many_stays_small() -> None:
    """The gradient by a parameter of all terms, beside those by their own unknowns."""
    size = 40_000
    total = Few.identity(size, size).grouped(torch.zeros(size, dtype=torch.int64), 1)
    assert isinstance(total, Bits)
    spread = total.take(torch.where(torch.arange(size) == 7, 0, -1))
    after = Few.identity(size, size).then(total)
    both = merged(Few.identity(size, size), spread)
    assert both is not None
    for sets, entries in ((spread, size), (after, 2 * size), (both, 2 * size - 1)):
        assert isinstance(sets, Entries)
        assert sets.compressed().nnz == entries


def test_fuller_and_emptier_lists_one_after_the_other() -> None:
    full = Few.identity(800, 800).grouped(torch.zeros(800, dtype=torch.int64), 1).take(torch.zeros(300, dtype=torch.int64))
    empty = Few.identity(800, 800).take(torch.full((2_000,), -1)).then(Few.identity(800, 800))
    assert isinstance(full, Bits)
    for first, second in ((full, empty), (empty, full), (Bits.of(empty.compressed()), full)):
        assert first.then(second).compressed().nnz == 300 * 800 + 800


def test_what_does_not_fit_is_refused() -> None:
    sets = Few.identity(300_000, 300_000).grouped(torch.zeros(300_000, dtype=torch.int64), 1)
    with pytest.raises(MemoryBudgetError, match="GiB in the middle"):
        sets.take(torch.zeros(300_000, dtype=torch.int64))
