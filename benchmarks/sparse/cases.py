"""What is measured: problems, their sizes and points. Nothing here needs a library but NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SAMPLES, FEATURES, HIDDEN, OUTPUTS = 1024, 8, 32, 4
BLOCK = 8
HALF_WIDTH = 3
A_ROW = 4  # entries that are drawn for a row of the random matrix


@dataclass(frozen=True)
class Case:
    """A problem.

    Attributes:
        title: for the tables.
        of: which derivative.
        sizes: unknowns.
        dense: sizes at which the dense ways run too.
        compiled: sizes at which hesse's compiled graph runs too.
        whole: the size of the run in a process of its own that shows peak memory; 0 for none.
    """

    title: str
    of: Literal["jacobian", "hessian"]
    sizes: tuple[int, ...]
    dense: tuple[int, ...] = ()
    compiled: tuple[int, ...] = ()
    whole: int = 0


SMALL, MIDDLE, LARGE, MILLION = 1_000, 10_000, 100_000, 1_000_000

CASES = {
    "burgers": Case("Burgers", "jacobian", (SMALL, MIDDLE, LARGE, MILLION), (SMALL, MIDDLE), (MIDDLE, LARGE), MILLION),
    "brusselator_1d": Case("Brusselator, 1-D", "jacobian", (SMALL, MIDDLE, LARGE, MILLION), (SMALL, MIDDLE), (MIDDLE, LARGE)),
    "brusselator_2d": Case(
        "Brusselator, 2-D periodic", "jacobian", (2_048, 20_000, 100_352, 999_698), (2_048,), (20_000, 100_352), 999_698
    ),
    "energy": Case("energy on a 2-D grid, Hessian", "hessian", (1_024, 10_000, 99_856), (1_024,), (10_000,)),
    "volatility": Case("stochastic volatility, arrow-head Hessian", "hessian", (3_200, MIDDLE, LARGE), (3_200,), (3_200,)),
    "mlp": Case("MLP, 1,024 samples, 8 to 4", "jacobian", (SAMPLES * FEATURES,), (SAMPLES * FEATURES,)),
    "band": Case("band of width 7", "jacobian", (MIDDLE, LARGE)),
    "blocks": Case("blocks of 8", "jacobian", (MIDDLE,)),
    "random": Case("random, 4 entries a row", "jacobian", (MIDDLE,)),
}


def point(name: str, n: int) -> Array:
    """Where derivatives are taken: ``[n]``, smooth where the problem is."""
    rng = np.random.default_rng(n)
    if name == "burgers":
        return np.sin(2 * np.pi * np.arange(1, n + 1) / (n + 1)) + 0.5
    if name == "brusselator_1d":
        grid = np.arange(1, n // 2 + 1) / (n // 2 + 1)
        return np.concatenate([1 + np.sin(2 * np.pi * grid), np.full(n // 2, 3.0)])
    if name == "brusselator_2d":
        grid = np.arange(side(name, n)) / side(name, n)
        u, v = np.meshgrid(22 * (grid * (1 - grid)) ** 1.5, 27 * (grid * (1 - grid)) ** 1.5)
        return np.stack([u, v]).ravel()
    if name == "volatility":
        return np.concatenate([[-0.3, 1.5], 0.4 * rng.standard_normal(n - 2)])
    return rng.standard_normal(n)


def side(name: str, n: int) -> int:
    """Points along an edge of the grid."""
    return round((n / 2) ** 0.5) if name == "brusselator_2d" else round(n**0.5)


def returns(n: int) -> Array:
    """What the volatility model has observed: ``[n - 2]``."""
    return np.random.default_rng(1).standard_normal(n - 2)


def weights() -> tuple[Array, Array]:
    """Of the network: ``[8, 32]`` and ``[32, 4]``."""
    rng = np.random.default_rng(2)
    return rng.standard_normal((FEATURES, HIDDEN)) / FEATURES**0.5, rng.standard_normal((HIDDEN, OUTPUTS)) / HIDDEN**0.5


def kernel() -> Array:
    """Of the band: ``[7]``."""
    return np.random.default_rng(3).standard_normal(2 * HALF_WIDTH + 1)


def mixing() -> Array:
    """Of a block: ``[8, 8]``."""
    return np.random.default_rng(4).standard_normal((BLOCK, BLOCK))


def drawn_entries(n: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """Rows, columns and weights of the random matrix, each ``[4 n]``."""
    rng = np.random.default_rng(5)
    rows = np.repeat(np.arange(n), A_ROW)
    return rows, rng.integers(0, n, A_ROW * n), rng.standard_normal(A_ROW * n)
