"""Stencils of known optimum: as many colors as the stencil has points, where perfect codes tile the lattice."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from hesse.sparse import Pattern, coloring
from hesse.sparse.colors.columns import are_columns_apart
from hesse.sparse.colors.lattice import lattice_columns

from ..matrices import box, coupled, grid, line, random_pattern, torus

TWICE = sp.csr_array(grid(17, 19) @ grid(17, 19))


@pytest.mark.parametrize(("name", "matrix", "fewest"), [
    ("5 points, 5 divides the sides", torus(25, 35), 5), ("5 points, sides of 13", torus(13, 13), 13),
    ("7 points, 7 divides the sides", torus(7, 14, 7), 7), ("two fields, 6 divides the sides", coupled(torus(18, 24), 2), 6),
    ("two fields, one side", coupled(torus(32, 32), 2), 8), ("4 dimensions", grid(5, 4, 6, 5), 9),
    ("13 points", TWICE, 13), ("27 points", box(6, 5, 7), 27), ("two fields in space", coupled(grid(7, 6, 5), 2), 8),
    ("fields side by side", sp.kron(grid(14, 11), np.ones((2, 2))), 10), ("wide band", line(200, 9), 19),
])  # fmt: skip
def test_formulas(name, matrix, fewest: int) -> None:
    """Perfect Lee codes: Golomb and Welch, SIAM J. Appl. Math. 18 (1970), theorem 3 and section 4 (2 d + 1 colors in d
    dimensions, 13 for steps of two in the plane); stencils Goldfarb and Toint, Math. Comp. 43 (1984)."""
    pattern = Pattern.of(matrix)
    colors, _ = lattice_columns(pattern, 30)
    assert colors is not None, name
    assert are_columns_apart(pattern, colors)
    if fewest in (8, 13) and "side" in name:
        assert colors.max() + 1 <= fewest
    else:
        assert colors.max() + 1 == fewest, name


@pytest.mark.parametrize("sides", [(71, 71), (31, 37)])
def test_where_no_formula_closes_its_classes_are_an_order(sides: tuple[int, int]) -> None:
    pattern = Pattern.of(coupled(torus(*sides), 2))
    _, near = lattice_columns(pattern, 9)
    assert near
    for classes in near:
        assert not are_columns_apart(pattern, classes)
        assert 6 <= classes.max() + 1 <= 11


def test_beyond_greedy_on_a_torus() -> None:
    """No multiple of 6: greedy in the natural order takes 12, as asdex 0.5.1 does."""
    assert coloring(Pattern.of(coupled(torus(71, 71), 2)), kind="column", seconds=5).colors <= 9


def test_no_lattice_no_formula() -> None:
    pattern = random_pattern(np.random.default_rng(0), 300, 200, 0.02)
    assert lattice_columns(pattern, 100) == (None, [])
    assert lattice_columns(Pattern.from_coordinates([], [], (4, 5)), 100) == (None, [])


def test_one_row_off_the_stencil_refutes_a_formula() -> None:
    """Row 777 is in no sample; all entries are checked before a formula is believed."""
    matrix = sp.lil_array(line(1_000))
    matrix[777, 774], matrix[777, 776] = 1, 0  # 774 and 777 have one color among 3
    colors, _ = lattice_columns(Pattern.of(matrix), 3)
    assert colors is None


def test_columns_without_entries_have_no_color() -> None:
    matrix = sp.lil_array(grid(20, 30))
    matrix[:, 45] = 0
    colors, _ = lattice_columns(Pattern.of(sp.csr_array(matrix)), 9)
    assert colors is not None
    assert np.flatnonzero(colors < 0).tolist() == [45]
