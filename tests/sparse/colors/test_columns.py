"""Columns: the loop in C beside the one in Python, and entries that are alone beside a look at every pair."""

from __future__ import annotations

import numpy as np
import pytest

from hesse.sparse import Pattern
from hesse.sparse.colors import columns as module
from hesse.sparse.colors.columns import (
    alone_in_rows,
    are_columns_apart,
    greedy_columns,
    greedy_in_python,
    most_colors,
    neighbor_counts,
)
from hesse.sparse.colors.compiled import compiled_loop

from ..matrices import arrow, coupled, entries, random_pattern, reads_by_columns, torus


def drawn(seed: int) -> tuple[Pattern, np.ndarray]:
    rng = np.random.default_rng(seed)
    pattern = random_pattern(rng, int(rng.integers(1, 40)), int(rng.integers(1, 30)), rng.uniform(0.02, 0.5))
    return pattern, rng.permutation(pattern.shape[1])


def first_fit(pattern: Pattern, order: np.ndarray) -> list[int]:
    """The smallest color that no column before it, which shares a row, has."""
    dense, colors = pattern.to_dense().numpy(), [-1] * pattern.shape[1]
    for column in order.tolist():
        if dense[:, column].any():
            taken = {colors[k] for k in range(pattern.shape[1]) if (dense[:, k] & dense[:, column]).any()}
            colors[column] = next(c for c in range(pattern.shape[1] + 1) if c not in taken)
    return colors


def test_scipy_has_the_loop() -> None:
    """What `hesse.sparse.colors.compiled` assumes of SciPy; without it colorings are right, but ten times slower."""
    assert compiled_loop() is not None


@pytest.mark.parametrize("seed", range(20))
def test_both_loops_are_first_fit(seed: int) -> None:
    pattern, order = drawn(seed)
    natural = np.arange(pattern.shape[1])
    assert greedy_columns(pattern).tolist() == greedy_in_python(pattern).tolist() == first_fit(pattern, natural)
    expected = first_fit(pattern, order)
    assert greedy_columns(pattern, order).tolist() == greedy_in_python(pattern, order).tolist() == expected


def test_without_the_loop(monkeypatch) -> None:
    pattern = Pattern.of(torus(9, 7))
    expected = greedy_columns(pattern)
    monkeypatch.setattr(module, "compiled_loop", lambda: None)
    assert np.array_equal(greedy_columns(pattern), expected)


def test_very_many_colors_are_left_to_python(monkeypatch) -> None:
    """The loop in C takes a pass over all columns for each color: hours for a million of them."""
    monkeypatch.setattr(module, "_greedy_in_c", None)
    half = Pattern.from_coordinates(np.zeros(40_000, int), np.arange(40_000), (2, 80_000))
    assert greedy_columns(half).max() == 39_999


@pytest.mark.parametrize("seed", range(20))
def test_bounds(seed: int) -> None:
    pattern, order = drawn(seed)
    assert greedy_columns(pattern, order).max(initial=-1) + 1 <= most_colors(pattern)
    dense = pattern.to_dense().numpy().astype(int)
    meets = ((dense.T @ dense > 0) & ~np.eye(dense.shape[1], dtype=bool)).sum(1)
    used = dense.any(0)
    assert (neighbor_counts(pattern)[used] >= meets[used]).all()


def test_the_bound_of_a_full_column_is_not_its_length() -> None:
    rows = np.repeat(np.arange(600), 2)
    columns = np.stack([np.zeros(600, int), np.arange(1, 601)], 1).ravel()
    assert most_colors(Pattern.from_coordinates(rows, columns, (600, 601))) <= 3


@pytest.mark.parametrize("top", [1, 3, 15, 20, 47, 60])
@pytest.mark.parametrize("seed", range(6))
def test_entries_that_are_alone(seed: int, top: int) -> None:
    pattern, _ = drawn(seed)
    colors = np.random.default_rng(seed).integers(-1, top, pattern.shape[1])
    expected = reads_by_columns(pattern, colors)
    alone = alone_in_rows(pattern, colors)
    assert {(int(i), int(j)) for i, j in pattern.coordinates.T[alone].tolist()} == expected
    assert are_columns_apart(pattern, colors) == (expected == entries(pattern))


def test_entries_that_are_alone_among_very_many_colors() -> None:
    pattern = arrow(3_000, 1)
    colors = np.arange(3_000)
    assert alone_in_rows(pattern, colors).all()
    colors[7] = colors[2_000]
    assert np.flatnonzero(~alone_in_rows(pattern, colors)).tolist() == [7, 2_000]


def test_a_hundred_thousand_unknowns() -> None:
    """The greedy coloring in the natural order of the periodic Brusselator of asdex's paper takes 12 colors."""
    assert greedy_columns(Pattern.of(coupled(torus(224, 224), 2))).max() + 1 == 12
