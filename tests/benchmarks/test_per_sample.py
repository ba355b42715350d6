"""From rows to quantities, as libraries without their own are asked: against sums over flat rows."""

import pytest
import torch
from benchmarks.libraries import per_sample


@pytest.fixture
def rows():
    """Five rows with a block of few and one of many entries, and two blocks in the same memory."""
    generator = torch.Generator().manual_seed(7)
    wide = torch.randn(5, 3, per_sample.LARGE // 2, generator=generator, dtype=torch.float64)
    small = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    return {"wide": wide, "small": small, "again": small}


def flat(rows):
    return torch.cat([block.flatten(1) for block in rows.values()], dim=1)


def test_norms_and_gram(rows):
    J = flat(rows)
    torch.testing.assert_close(per_sample.gram(rows), J @ J.T)
    torch.testing.assert_close(per_sample.norms(rows), (J * J).sum(1).sqrt())


def test_squares_leave_the_rows_alone(rows):
    before = flat(rows)
    found = per_sample.squares(rows)
    assert {name: block.shape for name, block in found.items()} == {name: block.shape[1:] for name, block in rows.items()}
    torch.testing.assert_close(torch.cat([block.flatten() for block in found.values()]), (before**2).sum(0))
    assert torch.equal(flat(rows), before)


def test_only_long_rows_are_clipped(rows):
    J = flat(rows)
    bound = float(J.norm(dim=1).median())
    expected = sum(row if row.norm() <= bound else row / row.norm() * bound for row in J)
    found = per_sample.clipped_sum(rows, bound)
    torch.testing.assert_close(torch.cat([block.flatten() for block in found.values()]), expected)
