"""Blocks by row and their place in the dense Jacobian."""

from __future__ import annotations

import pytest
import torch

from hesse.derivatives.batched import same_unit_in_every_row, spread

from ..autodiff.programs import seeded


def test_spread() -> None:
    block = seeded(3, 2, 4, 5)  # [n, m, d1, d2]
    dense = spread(block, 2)
    assert dense.shape == (3, 2, 3, 4, 5)
    for i in range(3):
        for j in range(3):
            assert torch.equal(dense[i, :, j], block[i] if i == j else torch.zeros_like(block[i]))


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 2, 2)])
def test_units(shape: tuple[int, ...]) -> None:
    leaf = seeded(*shape)
    width = leaf[0].numel()
    eye = torch.eye(width, dtype=leaf.dtype)
    for start in range(width):
        block = same_unit_in_every_row(leaf, slice(start, width))
        assert block.shape == (width - start, *shape)
        for k, row in ((k, row) for k in range(width - start) for row in range(3)):
            assert torch.equal(block[k, row].reshape(-1), eye[start + k])
