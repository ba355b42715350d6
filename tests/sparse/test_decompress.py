"""Entries out of products: random matrices, multiplied densely."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hesse.sparse import Pattern, coloring
from hesse.sparse.decompress import Decompression, seeds

from .matrices import arrow, grid, line, random_pattern, random_symmetric


def filled(pattern: Pattern, *, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A random matrix with this pattern, and its entries."""
    dense = torch.randn(pattern.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * pattern.to_dense()
    dense = dense + dense.T if symmetric else dense
    return dense, dense[tuple(pattern.coordinates)]


def products(colored, dense: torch.Tensor) -> torch.Tensor:
    by_columns = seeds(colored.column_colors, colored.columns).to(dense) @ dense.T
    by_rows = seeds(colored.row_colors, colored.rows).to(dense) @ dense
    return torch.cat([by_columns.flatten(), by_rows.flatten()])


@pytest.mark.parametrize("kind", ["column", "row", "bidirectional"])
@pytest.mark.parametrize("seed", range(25))
def test_entries_of_any_matrix(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    pattern = random_pattern(rng, int(rng.integers(1, 12)), int(rng.integers(1, 15)), rng.uniform(0.05, 0.7))
    dense, entries = filled(pattern, symmetric=False)
    colored = coloring(pattern, kind=kind)
    assert torch.equal(Decompression.of(colored).values(products(colored, dense)), entries)


@pytest.mark.parametrize("kind", ["star", "acyclic", "column", "bidirectional"])
@pytest.mark.parametrize("seed", range(25))
def test_entries_of_symmetric_matrices(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    pattern = random_symmetric(rng, int(rng.integers(1, 15)), rng.uniform(0.03, 0.5))
    dense, entries = filled(pattern, symmetric=True)
    colored = coloring(pattern, kind=kind)
    torch.testing.assert_close(Decompression.of(colored).values(products(colored, dense)), entries, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", ["star", "acyclic"])
@pytest.mark.parametrize(
    "pattern", [Pattern.of(line(23)), Pattern.of(grid(6, 5)), arrow(17, 3)], ids=["line", "plane", "arrow"]
)
def test_structures(pattern: Pattern, kind: str) -> None:
    dense, entries = filled(pattern, symmetric=True)
    colored = coloring(pattern, kind=kind)
    torch.testing.assert_close(Decompression.of(colored).values(products(colored, dense)), entries, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", ["star", "acyclic", "bidirectional"])
def test_differentiable_and_batched(kind: str) -> None:
    pattern = arrow(6, 1)
    dense, entries = filled(pattern, symmetric=True)
    colored = coloring(pattern, kind=kind)
    decompression, given = Decompression.of(colored), products(colored, dense)
    assert torch.autograd.gradcheck(decompression.values, given.requires_grad_())
    many = torch.func.vmap(decompression.values)(torch.stack([given.detach(), 2 * given.detach()]))
    torch.testing.assert_close(many, torch.stack([entries, 2 * entries]))


def test_no_entries() -> None:
    colored = coloring(Pattern.from_coordinates([], [], (3, 4)))
    assert Decompression.of(colored).values(torch.zeros(0)).shape == (0,)
