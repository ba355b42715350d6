"""Full rows and columns."""

from __future__ import annotations

import numpy as np
import pytest

from hesse.sparse import Pattern, coloring
from hesse.sparse.colors.hubs import are_hubs, fullest, with_own_colors, without

from ..matrices import arrow, entries, grid, line


def test_where_hubs_begin() -> None:
    assert fullest(arrow(300, 2)) == (3, 5)
    assert fullest(Pattern.of(grid(20, 30))) == (5, 5)
    assert fullest(arrow(300, 2), arrow(300, 2).T) == (3, 7)
    assert fullest(Pattern.from_coordinates([], [], (0, 0))) == (0, 0)


def test_the_rest() -> None:
    pattern = arrow(9, 1)
    hubs = are_hubs(pattern, 2)
    assert np.flatnonzero(hubs).tolist() == [0]
    assert entries(without(pattern, hubs, hubs)) == {(i, i) for i in range(1, 9)}
    assert with_own_colors(np.array([0, 1, 0, -1]), np.array([False, True, False, True])).tolist() == [0, 2, 0, 3]


def test_the_arrow_head_of_3200_unknowns() -> None:
    pattern = arrow(3_200, 2)
    star = coloring(pattern, kind="star")
    assert star.colors == 3
    assert coloring(pattern, kind="acyclic").colors == 3
    assert coloring(pattern, kind="bidirectional").colors == 5


@pytest.mark.parametrize("hubs", [(17,), (3, 250, 251)])
def test_hubs_may_be_anywhere(hubs: tuple[int, ...]) -> None:
    """A band of half width 1 needs 3 star colors: Coleman and More, Math. Program. 28 (1984)."""
    matrix = line(400).toarray()
    for hub in hubs:
        matrix[hub], matrix[:, hub] = 1, 1
    assert coloring(Pattern.of(matrix), kind="star").colors == 3 + len(hubs)


def test_full_rows_only() -> None:
    matrix = line(200).toarray()
    matrix[50] = 1
    found = coloring(Pattern.of(matrix))
    assert (found.kind, found.colors) == ("row", 4)  # as good as one full row and 3 colors of columns, in one pass
