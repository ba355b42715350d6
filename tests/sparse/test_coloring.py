"""Colorings: valid by looking at every entry, and as few as is known to be possible."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from hesse.core.errors import StructureError
from hesse.sparse import ColoredPattern, Pattern, coloring
from hesse.sparse.colors.orders import ORDERS

from .matrices import (
    arrow,
    box,
    coupled,
    entries,
    fewest_both,
    fewest_column_colors,
    fewest_symmetric_colors,
    grid,
    has_cycle_in_two_colors,
    has_path_in_two_colors,
    line,
    random_pattern,
    random_symmetric,
    reads_by_columns,
    torus,
)

SEEDS = range(40)


def drawn(seed: int) -> Pattern:
    rng = np.random.default_rng(seed)
    return random_pattern(rng, int(rng.integers(1, 14)), int(rng.integers(1, 11)), rng.uniform(0.05, 0.6))


def drawn_symmetric(seed: int) -> Pattern:
    rng = np.random.default_rng(seed)
    return random_symmetric(rng, int(rng.integers(1, 14)), rng.uniform(0.03, 0.4))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_entry_can_be_read(seed: int, order: str) -> None:
    pattern, generator = drawn(seed), torch.Generator().manual_seed(seed)
    found = {
        kind: coloring(pattern, kind=kind, orders=[order], generator=generator) for kind in ("column", "row", "bidirectional")
    }
    assert reads_by_columns(pattern, found["column"].column_colors) == entries(pattern)
    assert reads_by_columns(pattern.T, found["row"].row_colors) == entries(pattern.T)
    both = found["bidirectional"]
    mirrored = {(i, j) for j, i in reads_by_columns(pattern.T, both.row_colors)}
    assert reads_by_columns(pattern, both.column_colors) | mirrored == entries(pattern)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", SEEDS)
def test_symmetric_colorings(seed: int, order: str) -> None:
    pattern, generator = drawn_symmetric(seed), torch.Generator().manual_seed(seed)
    star = coloring(pattern, kind="star", orders=[order], generator=generator)
    read = reads_by_columns(pattern, star.column_colors)
    assert read | {(j, i) for i, j in read} == entries(pattern)
    whole = Pattern.of(pattern.to_dense() | torch.eye(pattern.shape[0], dtype=torch.bool))
    assert not has_path_in_two_colors(whole, coloring(whole, kind="star", orders=[order]).column_colors)
    acyclic = coloring(pattern, kind="acyclic", orders=[order], generator=generator)
    assert not has_cycle_in_two_colors(pattern, acyclic.column_colors)


@pytest.mark.parametrize("seed", range(12))
def test_small_columns_beside_the_optimum(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    pattern = random_pattern(rng, 6, 7, 0.3)
    assert fewest_column_colors(pattern) == coloring(pattern, kind="column", seconds=5).colors


@pytest.mark.parametrize(("name", "matrix", "fewest"), [
    ("band", line(40), 3), ("wide band", line(50, 3), 7), ("plane", grid(11, 9), 5), ("square", grid(20, 20), 5),
    ("space", grid(6, 5, 7), 7), ("box", box(9, 8), 9), ("box in space", box(5, 4, 6), 27),
    ("two fields on a line", coupled(line(30), 2), 4), ("two fields in the plane", coupled(grid(12, 10), 2), 6),
    ("blocks", np.kron(np.eye(9), np.ones((4, 3))), 3), ("diagonal", np.eye(13), 1), ("full", np.ones((4, 5)), 5),
])  # fmt: skip
def test_stencils_and_blocks_have_the_colors_of_their_fullest_row(name, matrix, fewest: int) -> None:
    """Optimal, as a row needs a color for each entry: Goldfarb and Toint, Math. Comp. 43 (1984), for the stencils."""
    assert coloring(Pattern.of(matrix), kind="column", seconds=5).colors == fewest, name


@pytest.mark.parametrize("size", [20_000, 30_011])
def test_large_bands(size: int) -> None:
    assert coloring(Pattern.of(line(size)), kind="column", seconds=0).colors == 3


def test_large_stencils_are_colored_by_formula() -> None:
    found = coloring(Pattern.of(grid(200, 150)), kind="column")
    assert (found.colors, found.found_by) == (5, "by formula")
    assert coloring(Pattern.of(grid(200, 150)), kind="star").colors == 5


def complete_bipartite(a: int, b: int) -> np.ndarray:
    matrix = np.zeros((a + b, a + b))
    matrix[:a, a:] = 1
    return matrix + matrix.T


def cycle(n: int) -> np.ndarray:
    return np.roll(np.eye(n), 1, 0) + np.roll(np.eye(n), -1, 0)


@pytest.mark.parametrize(("name", "matrix", "star", "acyclic"), [
    ("path", line(12).toarray(), 3, 2), ("cycle of 5", cycle(5), 4, 3), ("cycle of 12", cycle(12), 3, 3),
    ("complete", np.ones((6, 6)), 6, 6), ("complete bipartite", complete_bipartite(3, 7), 4, 4),
    ("a star", arrow(30, 1).to_dense().numpy(), 2, 2),
    ("no edges", np.eye(5), 1, 1),
])  # fmt: skip
def test_star_and_acyclic_numbers_of_known_graphs(name, matrix, star: int, acyclic: int) -> None:
    """Fertin, Raspaud and Reed, Star coloring of graphs, J. Graph Theory 47 (2004), theorems 3.1 to 3.5."""
    pattern = Pattern.of(matrix + np.eye(len(matrix)))  # every vertex needs a color if its diagonal entry is wanted
    assert coloring(pattern, kind="star", seconds=5).colors == star, name
    assert coloring(pattern, kind="acyclic", seconds=5).colors == acyclic, name


def test_the_star_number_of_the_plane() -> None:
    """Five for lattices of at least four by four points: Fertin, Raspaud and Reed, theorem 3.8."""
    assert coloring(Pattern.of(grid(9, 8)), kind="star", seconds=5).colors == 5


@pytest.mark.parametrize("hubs", [1, 2, 5])
def test_arrow_heads(hubs: int) -> None:
    """Every column meets every other in the full rows; but a hub each, and one color for all others, tell the entries apart."""
    pattern = arrow(300, hubs)
    assert coloring(pattern, kind="column").colors == 300
    assert coloring(pattern, kind="star").colors == hubs + 1
    assert coloring(pattern, kind="bidirectional").colors == 2 * hubs + 1
    assert coloring(pattern).kind == "bidirectional"


def test_auto_takes_the_side_with_fewer_colors() -> None:
    wide = Pattern.of(np.kron(np.eye(4), np.ones((2, 6))))
    assert (coloring(wide).kind, coloring(wide).colors) == ("row", 2)
    assert (coloring(wide.T).kind, coloring(wide.T).colors) == ("column", 2)


@pytest.mark.parametrize("kind", ["column", "row", "bidirectional", "star", "acyclic", "auto"])
def test_no_entries_no_colors(kind: str) -> None:
    empty = coloring(Pattern.from_coordinates([], [], (4, 4)), kind=kind)
    assert empty.colors == 0
    assert coloring(Pattern.from_coordinates([], [], (0, 0)), kind=kind).colors == 0


def test_columns_without_entries_need_no_color() -> None:
    found = coloring(Pattern.from_coordinates([0, 1], [1, 3], (2, 5)), kind="column")
    assert found.column_colors.tolist() == [-1, 0, -1, 0, -1]


@pytest.mark.parametrize(("kind", "columns", "rows", "found"), [
    ("column", [0, 0, 1], [-1, -1], r"the entry at \(0, 0\)"), ("row", [-1] * 3, [0, 0], r"the entry at \(0, 0\)"),
    ("column", [0, -1, 1], [-1, -1], r"the entry at \(0, 1\)"), ("column", [0, 1], [-1, -1], "2 and 2 colors"),
    ("bidirectional", [0, 0, -1], [0, -1], r"the entry at \(1, 0\)"), ("star", [0, 1, 2], [-1, -1], r"one of shape \(2, 3\)"),
])  # fmt: skip
def test_invalid_colorings_are_refused(kind, columns, rows, found) -> None:
    pattern = Pattern.of([[1, 1, 0], [1, 1, 1]])
    with pytest.raises(StructureError, match=found):
        ColoredPattern(pattern, kind, np.array(columns), np.array(rows))


@pytest.mark.parametrize(("kind", "colors"), [("star", [0, 1, 0, 1]), ("acyclic", [0, 0, 1, 2]), ("star", [0, 0, 1, 2])])
def test_invalid_symmetric_colorings_are_refused(kind, colors) -> None:
    with pytest.raises(StructureError, match=r"entry at|two colors"):
        ColoredPattern(Pattern.of(line(4)), kind, np.array(colors), np.array([-1] * 4))


def test_bad_options_are_refused() -> None:
    with pytest.raises(StructureError, match="kind is one of"):
        coloring(np.eye(3), kind="diagonal")
    with pytest.raises(StructureError, match="Orders are"):
        coloring(np.eye(3), orders=["best"])
    with pytest.raises(StructureError, match=r"an entry at \(0, 2\) and none at \(2, 0\)"):
        coloring([[1, 0, 1], [0, 1, 0], [0, 0, 1]], kind="star")


def test_save_and_load(tmp_path) -> None:
    before = coloring(arrow(20, 2), kind="bidirectional")
    before.save(tmp_path / "colors")
    after = ColoredPattern.load(tmp_path / "colors")
    assert (after.kind, after.found_by, after.pattern) == (before.kind, before.found_by, before.pattern)
    assert np.array_equal(after.column_colors, before.column_colors)
    assert np.array_equal(after.row_colors, before.row_colors)


def test_repr() -> None:
    assert repr(coloring(arrow(30, 2), kind="bidirectional")) == (
        "ColoredPattern(30 x 30, 144 entries, 16 %: 3 column colors and 2 row colors, natural order and 4 hubs)")  # fmt: skip
    assert "2 acyclic colors" in repr(coloring(line(9), kind="acyclic"))


def symmetric_is_read(pattern: Pattern, colors: np.ndarray) -> bool:
    """Whether every entry or its mirror image is alone in its row with its color."""
    read = reads_by_columns(pattern, colors)
    return read | {(j, i) for i, j in read} == entries(pattern)


@pytest.mark.parametrize("seed", range(12))
def test_small_star_and_acyclic_colorings_beside_the_optimum(seed: int) -> None:
    rng = np.random.default_rng(300 + seed)
    pattern = random_symmetric(rng, 6, 0.25) | Pattern.of(np.eye(6))
    star = fewest_symmetric_colors(pattern, symmetric_is_read)
    assert coloring(pattern, kind="star", seconds=1).colors == star
    acyclic = fewest_symmetric_colors(pattern, lambda p, c: not has_cycle_in_two_colors(p, c))
    assert coloring(pattern, kind="acyclic", seconds=1).colors == acyclic


@pytest.mark.parametrize("seed", range(8))
def test_small_colorings_of_both_sides_beside_the_optimum(seed: int) -> None:
    """Within one of it: the search is greedy."""
    pattern = random_pattern(np.random.default_rng(400 + seed), 3, 4, 0.5)
    fewest = fewest_both(pattern)
    assert fewest <= coloring(pattern, kind="bidirectional", seconds=1).colors <= fewest + 1


@pytest.mark.parametrize("half", [1, 2, 5])
def test_bands(half: int) -> None:
    """With columns 2 b + 1 colors, by substitution b + 1: Powell and Toint, SIAM J. Numer. Anal. 16 (1979), section 2; fewer
    are impossible, as b + 1 neighbors on the line all meet."""
    pattern = Pattern.of(line(60, half))
    assert coloring(pattern, kind="column").colors == 2 * half + 1
    assert coloring(pattern, kind="acyclic").colors == half + 1
    assert half + 1 < coloring(pattern, kind="star").colors <= 2 * half + 1


def test_structured_matrices_of_sparse_matrix_colorings() -> None:
    """Diagonal 1, bidiagonal 2, tridiagonal 3, bands lower + upper + 1, blocks their width: what SparseMatrixColorings.jl gives
    these (src/structured.jl of its release 0.4)."""
    n = 30
    assert coloring(np.eye(n)).colors == 1
    assert coloring(np.eye(n) + np.eye(n, k=1)).colors == 2
    assert coloring(sp.diags_array([np.ones(n)] * 6, offsets=range(-1, 5), shape=(n, n))).colors == 6
    assert coloring(np.kron(np.eye(7) + np.eye(7, k=-1), np.ones((3, 4))), kind="column").colors == 8


@pytest.mark.parametrize(("name", "matrix", "column", "star"), [
    ("two fields, 32 x 32", coupled(torus(32, 32), 2), 12, 9), ("31 x 37", torus(31, 37), 8, 7),
    ("50 x 50", torus(50, 50), 10, 6), ("12 x 13 x 11", torus(12, 13, 11), 14, 11),
    ("two fields on a line", coupled(line(500), 2), 6, 5),
])  # fmt: skip
def test_no_more_colors_than_asdex(name, matrix, column: int, star: int) -> None:
    """The counts of asdex 0.5.1 for these (benchmarks/sparsity/colorings.py)."""
    pattern = Pattern.of(matrix)
    assert coloring(pattern, kind="column", seconds=1).colors <= column, name
    assert coloring(pattern, kind="star", seconds=1).colors <= star, name


def test_unknowns_without_diagonal_may_need_no_color() -> None:
    """A bilinear form of 3 and 7 unknowns: products with the 3 show every entry."""
    found = coloring(complete_bipartite(3, 7), kind="star")
    assert found.colors == 3
    assert (found.column_colors >= 0).sum() == 3


@pytest.mark.parametrize(("columns", "rows", "found"), [
    ([0.0, 1.0, 2.0], [-1, -1], "dtype float64"), ([0, -2, 1], [-1, -1], "-2 in column_colors"),
    ([0, 1, 2, 3], [-1, -1], "2 and 4 colors"), ([0, 1, 2], [0, -1], "on the other side too"),
    ([-1, -1, -1], [-1, -1], "entry at"),
])  # fmt: skip
def test_colors_that_users_get_wrong(columns, rows, found) -> None:
    with pytest.raises(StructureError, match=found):
        ColoredPattern(Pattern.of([[1, 1, 0], [1, 1, 1]]), "column", np.array(columns), np.array(rows))


def test_colors_that_are_missing() -> None:
    with pytest.raises(StructureError, match=r"A color(.|\n)*row_colors of type NoneType"):
        ColoredPattern(Pattern.of(np.eye(2)), "column", np.array([0, 1]), None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(StructureError, match=r"A color(.|\n)*column_colors that NumPy"):
        ColoredPattern(Pattern.of(np.eye(2)), "column", [[0], [1, 2]], np.full(2, -1))  # pyright: ignore[reportArgumentType]
    assert ColoredPattern(torch.eye(2), "row", np.full(2, -1), np.array([0, 0])).pattern.nnz == 2  # pyright: ignore


@pytest.mark.parametrize(("options", "found"), [
    ({"seconds": "1"}, "seconds='1'"), ({"seconds": -1}, "seconds=-1"), ({"seconds": float("nan")}, "seconds=nan"),
    ({"seconds": float("inf")}, "seconds=inf"), ({"seconds": None}, "seconds=None"), ({"seconds": True}, "seconds=True"),
    ({"orders": "natural"}, "'natural'"), ({"orders": 3}, "3"), ({"generator": 7}, "generator=7"),
])  # fmt: skip
def test_options_of_another_type(options, found) -> None:
    with pytest.raises(StructureError, match=rf"found: {found}(.|\n)*remedy"):
        coloring(np.eye(3), **options)


def test_an_unknown_kind_of_colors() -> None:
    with pytest.raises(StructureError, match="kind is one of"):
        ColoredPattern(Pattern.of(np.eye(2)), "best", np.array([0, 0]), np.array([-1, -1]))  # pyright: ignore[reportArgumentType]


def test_gaps_between_given_colors_are_closed() -> None:
    found = ColoredPattern(Pattern.of(np.eye(3)), "column", np.array([4, 10**12, -1 + 8]), np.full(3, -1))
    assert (found.column_colors.tolist(), found.colors) == ([0, 2, 1], 3)


def test_an_order_that_is_too_dear_gives_way() -> None:
    """No intersection graph of 4,000,000 edges is built; the natural order serves."""
    pattern = Pattern.from_coordinates(np.zeros(3_000, int), np.arange(3_000), (2, 4_000))
    pattern = pattern | Pattern.from_coordinates([1, 1], [0, 3_999], (2, 4_000))
    assert coloring(pattern, kind="column", orders=["smallest last"]).colors == 3_000


def test_the_same_colors_at_every_call_and_no_global_random_numbers() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    pattern = random_pattern(np.random.default_rng(5), 60, 50, 0.1)
    first, second = (coloring(pattern, kind="column", orders=["random"], seconds=0) for _ in range(2))
    assert np.array_equal(first.column_colors, second.column_colors)
    assert torch.equal(before, torch.get_rng_state())
