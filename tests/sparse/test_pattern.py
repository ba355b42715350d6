"""Patterns: the places of entries, from whatever has them."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from hesse.core.errors import DataError, StructureError
from hesse.sparse import ColoredPattern, Pattern, coloring

from .matrices import arrow, entries, grid, random_pattern

PLACES = {(0, 1), (0, 4), (2, 0), (2, 4)}
DENSE = np.zeros((3, 5))
for place in PLACES:
    DENSE[place] = 2.0 + place[0]


@pytest.mark.parametrize("matrix", [
    DENSE, torch.from_numpy(DENSE), torch.from_numpy(DENSE).to_sparse(), torch.from_numpy(DENSE).to_sparse_csr(),
    torch.from_numpy(DENSE).to_sparse_csc(), sp.csr_array(DENSE), sp.coo_array(DENSE), sp.csc_array(DENSE), sp.lil_array(DENSE),
    (DENSE != 0).tolist(), Pattern.of(DENSE), torch.from_numpy(DENSE).requires_grad_(),
], ids=lambda matrix: f"{type(matrix).__name__} {getattr(matrix, 'layout', '')}")  # fmt: skip
def test_from_any_matrix(matrix) -> None:
    pattern = Pattern.of(matrix)
    assert (pattern.shape, pattern.nnz, entries(pattern)) == ((3, 5), 4, PLACES)
    assert [pattern.indices[a:b].tolist() for a, b in zip(pattern.indptr, pattern.indptr[1:], strict=False)] == [
        [1, 4],
        [],
        [0, 4],
    ]


def test_stored_zeros_of_sparse_matrices_are_entries() -> None:
    stored = torch.sparse_coo_tensor(torch.tensor([[0, 1], [1, 0]]), torch.tensor([0.0, 3.0]), (2, 2))
    assert entries(Pattern.of(stored)) == {(0, 1), (1, 0)}


def test_places_in_any_order_and_twice_count_once() -> None:
    pattern = Pattern.from_coordinates([2, 0, 2, 0, 2], [4, 1, 0, 4, 4], (3, 5))
    assert pattern == Pattern.of(DENSE)
    assert pattern != Pattern.of(DENSE != 2)
    assert pattern != Pattern.from_coordinates([2, 0, 2, 0], [4, 1, 0, 4], (4, 5))


def test_transpose_union_and_what_is_missing() -> None:
    rng = np.random.default_rng(3)
    a, b = random_pattern(rng, 7, 4, 0.4), random_pattern(rng, 7, 4, 0.4)
    assert entries(a.T) == {(j, i) for i, j in entries(a)}
    assert a == a.T.T
    assert entries(a | b) == entries(a) | entries(b)
    assert {tuple(place) for place in a.missing(b).tolist()} == entries(b) - entries(a)
    assert (a | b).covers(a)
    assert not a.covers(b)
    assert a.density == pytest.approx(len(entries(a)) / 28)
    assert np.array_equal(a.to_scipy().toarray(), a.to_dense().numpy())


def test_symmetry() -> None:
    assert arrow(6, 2).is_symmetric
    assert not Pattern.of(DENSE[:, :3]).is_symmetric
    assert not Pattern.of(DENSE).is_symmetric


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (3, 3)])
def test_no_entries(shape: tuple[int, int]) -> None:
    pattern = Pattern.from_coordinates([], [], shape)
    assert (pattern.nnz, pattern.density, entries(pattern.T)) == (0, 0.0, set())
    assert "0 entries" in repr(pattern)


@pytest.mark.parametrize(("rows", "columns", "found"), [
    ([0, 3], [1, 1], "row 3"), ([0, -1], [1, 1], "row -1"), ([0, 1], [1, 5], "column 5"), ([0, 1], [1], "2 rows and 1 columns"),
])  # fmt: skip
def test_places_outside_are_refused(rows, columns, found) -> None:
    with pytest.raises(StructureError, match=found):
        Pattern.from_coordinates(rows, columns, (3, 5))


NO_MATRICES = {
    "flat": torch.ones(3), "three axes": np.ones((2, 2, 2)), "text": "text", "number": 3.0, "ragged": [[1, 2], [3]],
    "meta": torch.ones(2, 2, device="meta"), "sparse with three axes": torch.ones(2, 2, 2).to_sparse(), "none": None,
}  # fmt: skip


@pytest.mark.parametrize("matrix", NO_MATRICES.values(), ids=NO_MATRICES)
def test_what_is_no_matrix_is_refused(matrix) -> None:
    with pytest.raises(StructureError, match=r"found(.|\n)*remedy: pass a matrix"):
        Pattern.of(matrix)


def test_the_picture() -> None:
    """Dots by the table of Unicode 16, block U+2800: the first column of a character has bits 1, 2, 4, 64."""
    identity = Pattern.of(np.eye(8))
    assert repr(identity) == "Pattern(8 x 8, 8 entries, 12.5 %)\n⎡⠑⢄⠀⠀⎤\n⎣⠀⠀⠑⢄⎦"
    assert repr(Pattern.of(np.ones((2, 3)))).endswith("\n[⠛⠃]")
    large = repr(Pattern.of(grid(40, 30))).splitlines()
    assert len(large) == 21
    assert {len(row) for row in large[1:]} == {42}


def test_every_entry_of_a_large_pattern_shows() -> None:
    single = Pattern.from_coordinates([9_999], [4_999], (10_000, 10_000))
    assert sum(char not in "⠀⎡⎤⎢⎥⎣⎦\n" for char in repr(single).partition("\n")[2]) == 1


def test_figures() -> None:
    ax = arrow(50, 1).plot()
    assert np.isfinite(np.asarray(ax.images[0].get_array(), float)).sum() == 148
    colored = coloring(arrow(50, 1), kind="bidirectional").plot()
    assert len(np.unique(np.ma.compressed(np.ma.masked_invalid(colored.images[0].get_array())))) == 3
    wide = Pattern.from_coordinates([4_999], [9_999], (5_000, 10_000)).plot(ax)
    assert wide is ax
    assert np.isfinite(np.asarray(ax.images[1].get_array(), float)).sum() == 1


def test_pixels_of_several_colors_are_gray() -> None:
    """Two colors alternate along a diagonal of 5 entries a pixel, and one has the lower half to itself."""
    n = 1000
    pattern = Pattern.of(sp.eye_array(n))
    colors = np.where(np.arange(n) < n // 2, np.arange(n) % 2, 1)
    ax = ColoredPattern(pattern, "column", colors, np.full(n, -1)).plot()
    pixels = np.asarray(ax.images[0].get_array(), float)
    assert np.diag(pixels).tolist() == [2.0] * 100 + [1.0] * 100
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["column 0", "column 1", "several"]
    small = ColoredPattern(Pattern.of(np.eye(4)), "row", np.full(4, -1), np.array([0, 1, 0, 1])).plot().get_legend()
    assert small is not None
    assert [text.get_text() for text in small.get_texts()] == ["row 0", "row 1"]


def test_save_and_load(tmp_path) -> None:
    pattern = Pattern.of(DENSE)
    pattern.save(tmp_path / "pattern")
    assert Pattern.load(tmp_path / "pattern") == pattern
    coloring(pattern).save(tmp_path / "colored")
    with pytest.raises(DataError, match="colored pattern"):
        Pattern.load(tmp_path / "colored")
