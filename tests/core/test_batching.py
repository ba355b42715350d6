"""Chunks along a leading axis, and masks that separate every ordered pair."""

from __future__ import annotations

from math import comb, log2

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hesse.core.batching import map_chunks, separating_masks, slices


@given(st.integers(0, 40), st.integers(0, 50))
def test_slices_cover_everything_once(total: int, chunk: int) -> None:
    pieces = [list(range(total)[piece]) for piece in slices(total, chunk)]
    assert [item for piece in pieces for item in piece] == list(range(total))
    assert all(1 <= len(piece) <= max(chunk, 1) for piece in pieces)
    assert all(len(piece) == max(chunk, 1) for piece in pieces[:-1])


def test_slices_with_a_label_are_the_same() -> None:
    assert list(slices(7, 3, "rows")) == list(slices(7, 3)) == [slice(0, 3), slice(3, 6), slice(6, 7)]


@pytest.mark.parametrize(("chunk", "sizes"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (100, [7])])
def test_map_chunks(chunk: int, sizes: list[int]) -> None:
    seen: list[int] = []

    def fn(batch):
        seen.append(batch["x"].shape[0])
        return {"sum": batch["x"].sum(1) + batch["y"], "both": (batch["x"] * 2,)}

    batch = {"x": torch.arange(21.0).reshape(7, 3), "y": torch.arange(7.0), "note": "kept"}
    result = map_chunks(fn, batch, chunk)
    assert seen == sizes
    assert torch.equal(result["sum"], batch["x"].sum(1) + batch["y"])
    assert torch.equal(result["both"][0], 2 * batch["x"])


def test_map_chunks_of_nothing_keeps_shape_and_dtype() -> None:
    result = map_chunks(lambda x: x.double() @ torch.ones(3, 2).double(), torch.zeros(0, 3), 4)
    assert (result.shape, result.dtype) == ((0, 2), torch.float64)


@pytest.mark.parametrize("total", [*range(24), 35, 36, 70, 71, 200])
def test_masks_separate_every_ordered_pair(total: int) -> None:
    masks = separating_masks(total)
    assert masks.dtype == torch.bool
    assert masks.shape[1] == total
    for i in range(total):
        for j in range(total):
            if i != j:
                assert (masks[:, i] & ~masks[:, j]).any(), (i, j)


@pytest.mark.parametrize("total", [2, 3, 4, 6, 7, 20, 21, 252, 253, 1000, 5000])
def test_masks_are_as_few_as_sperner_allows(total: int) -> None:
    passes = len(separating_masks(total))
    assert comb(passes, passes // 2) >= total
    assert comb(passes - 1, (passes - 1) // 2) < total  # no antichain of that size in fewer (Sperner 1928)
    assert passes <= log2(total) + log2(log2(total) + 1) / 2 + 2


def test_every_item_is_covered_by_some_mask() -> None:
    for total in (1, 2, 5, 30):
        assert separating_masks(total).any(0).all()
