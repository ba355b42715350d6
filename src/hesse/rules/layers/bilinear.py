"""Bilinear layers: ``y[o] = x1^T W[o] x2``.

The row of the weight is ``sum_t g[t] (outer) vec(x1[t] x2[t]^T)``, a `Contract` whose second factor is itself an outer product;
it is formed for a few samples at a time, when a contraction needs it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.rules.forms import Contract, Form
from hesse.rules.layers.meeting import Meeting, layer_rules

_BILINEAR = ([1, 3], [0], [1, 2], [2, 3])
"""How `F.bilinear` lays ``[t, p]``, ``[o, p, q]`` and ``[t, q]`` out as ``[t, o, p, q]``: added axes, and summed ones."""


@dataclass(frozen=True, eq=False)
class OuterProducts:
    """Outer products of two inputs ``[n, t, p]`` and ``[n, t, q]``: ``[n, 1, t, p * q]``, formed when sliced."""

    first: Tensor
    second: Tensor

    @property
    def shape(self) -> torch.Size:
        """``[n, 1, t, p * q]``."""
        n, t, p = self.first.shape
        return torch.Size((n, 1, t, p * self.second.shape[2]))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the products."""
        return torch.promote_types(self.first.dtype, self.second.dtype)

    def __getitem__(self, samples: slice, /) -> Tensor:
        products = self.first[samples].unsqueeze(3) * self.second[samples].unsqueeze(2)
        return products.flatten(2).unsqueeze(1)


@layer_rules.register("TrilinearBackward0")
def trilinear(meeting: Meeting) -> Form | None:
    """``_trilinear(x1, weight, x2)`` as `F.bilinear` calls it, which merges all axes but the last of the inputs."""
    layout = tuple(list(meeting.saved(name)) for name in ("expand1", "expand2", "expand3", "sumdim"))
    if meeting.index != 1 or layout != _BILINEAR or meeting.where.axis != 0:
        return None
    first, second = (meeting.where.rows(meeting.saved(name)) for name in ("i1", "i3"))
    return Contract(meeting.where.rows(meeting.g).unsqueeze(1), OuterProducts(first, second))
