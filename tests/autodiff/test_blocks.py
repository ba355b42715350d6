"""Blocks of vectors: units, joins, chunks, and what cannot be batched."""

from __future__ import annotations

import pytest
import torch

from hesse.autodiff.blocks import chunk_for, joined, pull_block, push_block, unit_blocks, unit_rows
from hesse.autodiff.recording import record
from hesse.core.errors import MemoryBudgetError

from .programs import REAL, ReverseOnlySquare, by_loops, seeded


@pytest.mark.parametrize("shape", [(), (1,), (3, 2), (2, 0)])
def test_unit_rows(shape: tuple[int, ...]) -> None:
    leaf = torch.zeros(shape, dtype=REAL)
    eye = torch.eye(leaf.numel(), dtype=REAL)
    for start in range(leaf.numel()):
        for stop in range(start + 1, leaf.numel() + 1):
            block = unit_rows(leaf, slice(start, stop))
            assert torch.equal(block, eye[start:stop].reshape(-1, *shape))


def test_unit_blocks_make_the_identity() -> None:
    leaves = [seeded(2, 3), torch.zeros(0, dtype=REAL), torch.zeros((), dtype=REAL)]
    rows = [
        torch.cat([part.reshape(len(part), leaf.numel()) for part, leaf in zip(block, leaves, strict=True)], 1)
        for _, _, block in unit_blocks(leaves, 4, "")
    ]
    assert [len(r) for r in rows] == [4, 2, 1]
    assert torch.equal(torch.cat(rows), torch.eye(7, dtype=REAL))


def test_joined_without_blocks() -> None:
    leaves = [seeded(2, 3), torch.zeros((), dtype=REAL)]
    assert [t.shape for t in joined([], leaves)] == [(0, 2, 3), (0,)]
    assert [t.shape for t in joined([[seeded(2, 4)], [seeded(3, 4)]], leaves)] == [(5, 4)]


def test_blocks_equal_single_products() -> None:
    x = seeded(3)
    for f in (lambda t: torch.outer(t, t.sin()), lambda t: ReverseOnlySquare.apply(t).sin()):
        run, J = record(f, x, ""), by_loops(f, x)
        u = seeded(4, *J.shape[:-1], seed=1)
        torch.testing.assert_close(pull_block(run, [u])[0], u.flatten(1) @ J.reshape(-1, 3))
    run, J = record(lambda t: torch.outer(t, t.sin()), x, ""), by_loops(lambda t: torch.outer(t, t.sin()), x)
    v = seeded(4, 3, seed=2)
    torch.testing.assert_close(push_block(run, [v])[0], torch.einsum("ijk,bk->bij", J, v))


def test_pairs_of_outputs_with_and_without_cotangent() -> None:
    run = record(lambda t: (t.sin(), t**2, torch.ones(2, dtype=REAL)), seeded(3), "")
    u = seeded(2, 3, seed=1)
    torch.testing.assert_close(pull_block(run, [None, u, None])[0], 2 * u * seeded(3))
    assert torch.equal(pull_block(run, [None, None, seeded(4, 2)])[0], torch.zeros(4, 3, dtype=REAL))


def test_chunks_keep_to_the_budget() -> None:
    run = record(lambda t: torch.sin(t * 2), seeded(1000), "")
    graph = run.graph_bytes()
    assert 2 * 8000 <= graph <= 4 * 8000
    held = 4 * graph  # of a vector: its cotangents, their sums, the graph, the results
    assert chunk_for(run, 50, 10_000, 10_000 + 7 * held, "a test") == 7
    assert chunk_for(run, 5, 10_000, 10_000 + 7 * held, "a test") == 5
    with pytest.raises(MemoryBudgetError, match="a test") as caught:
        chunk_for(run, 50, 10_000, 10_000, "a test")
    assert caught.value.least == 10_000 + graph
    assert chunk_for(run, 50, 10_000, caught.value.least, "a test") == 1
