"""Patterns by formula, in NumPy and SciPy only, so that every library can make the same ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp


def line(n: int, *, periodic: bool = False, width: int = 1) -> sp.csr_array:
    """A band; periodic ones close to a ring."""
    steps = np.arange(-width, width + 1)
    rows = np.repeat(np.arange(n), len(steps))
    columns = rows + np.tile(steps, n)
    inside = np.full(len(rows), periodic) | ((columns >= 0) & (columns < n))
    return sp.csr_array(sp.coo_array((np.ones(inside.sum()), (rows[inside], columns[inside] % n)), shape=(n, n)))


def star(*sizes: int, periodic: bool = False) -> sp.csr_array:
    """The points of a lattice with their neighbors along the axes: 5 in the plane, 7 in space."""
    total = sp.csr_array((1, 1))
    for size in sizes:
        old = sp.eye_array(total.shape[0])
        total = sp.csr_array(sp.kron(sp.eye_array(size), total) + sp.kron(line(size, periodic=periodic), old))
    return total


def fields(matrix: sp.csr_array, count: int) -> sp.csr_array:
    """Several unknowns a point, field after field, that see each other at their point."""
    same = sp.eye_array(matrix.shape[0])
    return sp.csr_array(sp.block_array([[matrix if i == j else same for j in range(count)] for i in range(count)]))


def arrow(n: int, hubs: int) -> sp.csr_array:
    """Full rows and columns in front, and a diagonal."""
    every = np.arange(n)
    rows = np.concatenate([every, *([every, np.full(n, hub)] for hub in range(hubs))], axis=None)
    columns = np.concatenate([every, *([np.full(n, hub), every] for hub in range(hubs))], axis=None)
    return sp.csr_array(sp.coo_array((np.ones(len(rows)), (rows, columns)), shape=(n, n)))


def triangulation(n: int) -> sp.csr_array:
    """Neighbors in the Delaunay triangulation of random points."""
    from scipy.spatial import Delaunay

    corners = Delaunay(np.random.default_rng(0).random((n, 2))).simplices
    rows, columns = corners[:, [0, 1, 2]].ravel(), corners[:, [1, 2, 0]].ravel()
    half = sp.csr_array(sp.coo_array((np.ones(len(rows)), (rows, columns)), shape=(n, n)))
    return sp.csr_array(half + half.T + sp.eye_array(n))


def scattered(n: int, each: int) -> sp.csr_array:
    """Entries at random places, `each` a row on average."""
    return sp.csr_array(sp.random_array((n, n), density=each / n, rng=np.random.default_rng(0)))


PATTERNS: dict[str, Callable[[], sp.csr_array]] = {
    "Burgers, 10,000": lambda: line(10_000),
    "Brusselator on a line, 10,000": lambda: fields(line(5_000), 2),
    "Brusselator on a torus, 2 x 32 x 32": lambda: fields(star(32, 32, periodic=True), 2),
    "Brusselator on a torus, 2 x 71 x 71": lambda: fields(star(71, 71, periodic=True), 2),
    "Brusselator on a torus, 2 x 224 x 224": lambda: fields(star(224, 224, periodic=True), 2),
    "5 points on a square, 100 x 100": lambda: star(100, 100),
    "5 points on a torus, 31 x 37": lambda: star(31, 37, periodic=True),
    "7 points in a box, 20 x 21 x 22": lambda: star(20, 21, 22),
    "7 points on a torus, 12 x 13 x 11": lambda: star(12, 13, 11, periodic=True),
    "27 points in a box, 12 x 11 x 10": lambda: sp.csr_array(sp.kron(sp.kron(line(12), line(11)), line(10))),
    "arrow-head, 3,200, 2 hubs": lambda: arrow(3_200, 2),
    "triangulation of 5,000 points": lambda: triangulation(5_000),
    "random, 2,000, 5 a row": lambda: scattered(2_000, 5),
    "Brusselator on a torus, 2 x 707 x 707": lambda: fields(star(707, 707, periodic=True), 2),
}
