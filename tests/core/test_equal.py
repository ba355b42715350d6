"""Places of equal numbers are those that a search through a list finds, in shapes that do not depend on them."""

from __future__ import annotations

import pytest
import torch

from hesse.core.equal import first_equal


@pytest.mark.parametrize("shape", [(9,), (1,), (0,), (3, 7), (2, 0), (0, 4), (2, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_first_places(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for seed in range(20):
        keys = torch.randint(-2, 3, shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
        found = first_equal(keys)
        assert found.shape == shape
        for row, own in zip(keys.reshape(-1, shape[-1] or 1).tolist(), found.reshape(-1, shape[-1] or 1).tolist(), strict=True):
            assert own == [row.index(key) for key in row]
