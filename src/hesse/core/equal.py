"""Equal numbers found by operations whose shapes do not depend on them, so that a record of them holds for other numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def first_equal(keys: Tensor) -> Tensor:
    """``[..., n]``: for each of n integers the place of the first one of its row that is equal to it.

    Cost: a stable sort of each row.
    """
    ordered, places = keys.sort(stable=True)
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    heads = torch.arange(keys.shape[-1], device=keys.device).where(begins, 0).cummax(-1).values
    return torch.empty_like(places).scatter_(-1, places, places.gather(-1, heads))
