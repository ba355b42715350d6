"""Colorings that get better: never worse, always valid."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hesse.sparse import Pattern, coloring
from hesse.sparse.colors import reorient
from hesse.sparse.colors.columns import are_columns_apart, greedy_columns
from hesse.sparse.colors.improve import classes_in_turn, iterated_greedy
from hesse.sparse.colors.reorient import reoriented_greedy
from hesse.sparse.colors.star import is_star

from ..matrices import coupled, has_path_in_two_colors, random_pattern, random_symmetric, torus


@pytest.mark.parametrize("seed", range(10))
def test_classes_in_any_order_never_need_more_colors(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pattern = random_pattern(rng, 60, 50, 0.08)
    colors = greedy_columns(pattern, rng.permutation(50))
    for _ in range(10):
        count = colors.max() + 1
        colors = greedy_columns(pattern, classes_in_turn(colors, rng))
        assert are_columns_apart(pattern, colors)
        assert colors.max() + 1 <= count


def test_from_a_color_each_to_the_optimum() -> None:
    pattern = Pattern.of(np.kron(np.eye(30), np.ones((2, 4))))
    steps = list(iterated_greedy(pattern, np.arange(120), 4, float("inf"), 0))
    assert steps[-1].max() + 1 == 4
    assert all(later.max() < sooner.max() for sooner, later in itertools.pairwise(steps))


def test_the_torus_gets_below_the_greedy_count() -> None:
    pattern = Pattern.of(coupled(torus(35, 35), 2))
    steps = list(iterated_greedy(pattern, greedy_columns(pattern), 6, float("inf"), 0))
    assert steps[-1].max() + 1 <= 10 < greedy_columns(pattern).max() + 1
    assert are_columns_apart(pattern, steps[-1])


@pytest.mark.parametrize("seed", range(10))
def test_star_colorings_get_better_and_stay_star_colorings(seed: int) -> None:
    pattern = random_symmetric(np.random.default_rng(seed), 30, 0.08) | Pattern.of(np.eye(30))
    count = 30
    for colors in reoriented_greedy(pattern, np.arange(30), 1, float("inf"), seed):
        assert not has_path_in_two_colors(pattern, colors)
        assert colors.max() + 1 < count
        count = colors.max() + 1
    assert count < 15


def test_star_colorings_of_a_torus() -> None:
    """From 10 colors of columns; asdex 0.5.1 (largest first) takes 6, and the lattice without ends needs 5."""
    pattern = Pattern.of(torus(50, 50))
    *_, best = reoriented_greedy(pattern, greedy_columns(pattern), 5, float("inf"), 0)
    assert is_star(pattern, best)
    assert best.max() + 1 <= 7


def test_no_memory_for_the_cube_of_a_full_matrix(monkeypatch) -> None:
    """Every row of 900 unknowns has 450 entries read there, each in a group with 450 others: 180 million entries."""
    monkeypatch.setattr(reorient, "_groups", None)
    pattern = Pattern.of(np.ones((900, 900)))
    assert list(reoriented_greedy(pattern, np.arange(900), 1, float("inf"), 0)) == []
    assert coloring(Pattern.of(np.ones((700, 700))), kind="star").colors == 700
