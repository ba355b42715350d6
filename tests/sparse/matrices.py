"""Matrices that are made by formula, and oracles that look at every entry."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp

from hesse.sparse import Pattern


def line(n: int, width: int = 1) -> sp.sparray:
    """A band: each point of a line sees `width` points on both sides."""
    return sp.diags_array([np.ones(n)] * (2 * width + 1), offsets=range(-width, width + 1), shape=(n, n))


def grid(*sizes: int) -> sp.sparray:
    """The star of a lattice: each point sees itself and its neighbors along the axes (5 points in the plane, 7 in space)."""
    total = sp.csr_array((1, 1))
    for size in sizes:
        old = sp.eye_array(total.shape[0])
        total = sp.kron(sp.eye_array(size), total, "csr") + sp.kron(line(size), old, "csr")
    return total


def ring(n: int) -> sp.sparray:
    """Each point of a circle sees itself and its two neighbors."""
    every = np.arange(n)
    places = np.concatenate([every] * 3), np.concatenate([every, (every + 1) % n, (every - 1) % n])
    return sp.csr_array(sp.coo_array((np.ones(3 * n), places), shape=(n, n)))


def torus(*sizes: int) -> sp.sparray:
    """The star of a periodic lattice."""
    total = sp.csr_array((1, 1))
    for size in sizes:
        old = sp.eye_array(total.shape[0])
        total = sp.kron(sp.eye_array(size), total, "csr") + sp.kron(ring(size), old, "csr")
    return total


def box(*sizes: int) -> sp.sparray:
    """All points at most one step away along every axis (9 points in the plane)."""
    total = sp.csr_array(np.ones((1, 1)))
    for size in sizes:
        total = sp.kron(line(size), total, "csr")
    return total


def coupled(matrix: sp.sparray, fields: int) -> sp.sparray:
    """Several unknowns a point, field after field, each seeing the others at its point."""
    same = sp.eye_array(matrix.shape[0])
    return sp.block_array([[matrix if i == j else same for j in range(fields)] for i in range(fields)])


def arrow(n: int, hubs: int) -> Pattern:
    """Full rows and columns in front, and a diagonal."""
    every = np.arange(n)
    rows, columns = [every], [every]
    for hub in range(hubs):
        rows += [every, np.full(n, hub)]
        columns += [np.full(n, hub), every]
    return Pattern.from_coordinates(np.concatenate(rows), np.concatenate(columns), (n, n))


def random_pattern(generator: np.random.Generator, rows: int, columns: int, density: float) -> Pattern:
    """Entries thrown at random; rows and columns may be empty."""
    return Pattern.of(generator.random((rows, columns)) < density)


def random_symmetric(generator: np.random.Generator, n: int, density: float) -> Pattern:
    """A symmetric one, with some of the diagonal."""
    half = generator.random((n, n)) < density
    return Pattern.of(half | half.T)


def entries(pattern: Pattern) -> set[tuple[int, int]]:
    """All places, from the dense matrix."""
    return {(int(i), int(j)) for i, j in pattern.to_dense().nonzero()}


def reads_by_columns(pattern: Pattern, colors: np.ndarray) -> set[tuple[int, int]]:
    """Entries that a product with a sum of columns shows alone."""
    places = entries(pattern)
    return {(i, j) for i, j in places if colors[j] >= 0
            and not any((i, k) in places and colors[k] == colors[j] for k in range(pattern.shape[1]) if k != j)}  # fmt: skip


def has_path_in_two_colors(pattern: Pattern, colors: np.ndarray) -> bool:
    """Whether four vertices in a row have two colors, or two neighbors one: no star coloring."""
    near = [[int(j) for j in row.nonzero()[0] if j != i] for i, row in enumerate(pattern.to_dense().numpy())]
    for b, neighbors in enumerate(near):
        for c in neighbors:
            if colors[b] == colors[c]:
                return True
            if any(a != d and colors[a] == colors[c] and colors[b] == colors[d]
                   for a, d in itertools.product(near[b], near[c]) if a != c and d != b):  # fmt: skip
                return True
    return False


def has_cycle_in_two_colors(pattern: Pattern, colors: np.ndarray) -> bool:
    """Whether the edges between two colors are dependent: the incidence matrix of a forest has full row rank."""
    edges = [(i, j) for i, j in entries(pattern) if i < j]
    if any(colors[i] == colors[j] for i, j in edges):
        return True
    for pair in {frozenset((int(colors[i]), int(colors[j]))) for i, j in edges}:
        chosen = [(i, j) for i, j in edges if {int(colors[i]), int(colors[j])} == pair]
        incidence = np.zeros((len(chosen), pattern.shape[0]))
        for number, (i, j) in enumerate(chosen):
            incidence[number, i], incidence[number, j] = 1, -1
        if np.linalg.matrix_rank(incidence) < len(chosen):
            return True
    return False


def fewest_column_colors(pattern: Pattern) -> int:
    """The optimum, by trying all colorings of a few columns."""
    dense = pattern.to_dense().numpy()
    used = [j for j in range(pattern.shape[1]) if dense[:, j].any()]
    clash = [(a, b) for a, b in itertools.combinations(range(len(used)), 2) if (dense[:, used[a]] & dense[:, used[b]]).any()]
    for count in range(1, len(used) + 1):
        for colors in itertools.product(range(count), repeat=max(0, len(used) - 1)):
            full = (0, *colors)
            if all(full[a] != full[b] for a, b in clash):
                return count
    return 0


def fewest_symmetric_colors(pattern: Pattern, is_right: Callable[[Pattern, np.ndarray], bool]) -> int:
    """The optimum of a kind of coloring of a few unknowns, by trying all that name the colors in their order."""
    size = pattern.shape[0]
    for count in range(1, size + 1):
        for colors in itertools.product(range(count), repeat=size):
            firsts = dict.fromkeys(colors)
            if list(firsts) == sorted(firsts) and is_right(pattern, np.array(colors)):
                return count
    return 0


def fewest_both(pattern: Pattern) -> int:
    """The fewest colors of columns and rows at once, by trying all."""
    places, (height, width) = entries(pattern), pattern.shape
    for total in range(height + width + 1):
        for of_columns in range(total + 1):
            for columns in itertools.product(range(-1, of_columns), repeat=width):
                left = places - reads_by_columns(pattern, np.array(columns))
                for rows in itertools.product(range(-1, total - of_columns), repeat=height):
                    if left <= {(i, j) for j, i in reads_by_columns(pattern.T, np.array(rows))}:
                        return total
    return -1
