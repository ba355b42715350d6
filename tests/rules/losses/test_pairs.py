"""Blocks of two with more axes: the partner of an element is half of axis 1 away."""

from __future__ import annotations

import torch

from hesse.rules.losses import Pairs
from tests.rules.losses.oracles import assert_is


def test_blocks_over_more_axes() -> None:
    a, b, c = torch.rand(3, 2, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, c = a + 1, c + 1
    form = Pairs(a, b, c)
    assert form.shape == (2, 6, 2) and form.count == 12 and form.is_psd
    matrix = torch.zeros(2, 6, 2, 2, 6, 2, dtype=torch.float64)
    for i in range(2):
        for j in range(3):
            for t in range(2):
                matrix[i, j, t, i, j, t], matrix[i, j + 3, t, i, j + 3, t] = a[i, j, t], c[i, j, t]
                matrix[i, j, t, i, j + 3, t] = matrix[i, j + 3, t, i, j, t] = b[i, j, t]
    assert_is(form, matrix.reshape(24, 24))
