"""Weighted sums of trees, in float32 for 16-bit numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hesse.core import tree
from hesse.core.tree import Tree


class WeightedSum:
    """``sum_b w_b x_b`` of trees that are alike, added up in float32 where their leaves are of 16 bits.

    Attributes:
        total: the sum so far, in the dtypes in which it is taken; None before the first tree.
    """

    def __init__(self) -> None:
        self.total: Tree | None = None
        self._dtypes: list[torch.dtype | None] = []

    def add(self, part: Tree, weight: float) -> None:
        """Add a tree so many times."""
        scaled = tree.map_tree(lambda leaf: _wide(leaf) * weight, part)
        if self.total is None:
            self.total = scaled
            self._dtypes = [leaf.dtype if isinstance(leaf, Tensor) else None for leaf in tree.leaves(part)]
        else:
            self.total = tree.map_tree(_added, self.total, scaled)

    def over(self, mass: float) -> Tree:
        """The sum divided by a number, in the dtypes of the first tree."""
        dtypes = iter(self._dtypes)
        return tree.map_tree(lambda leaf: _narrow(leaf if mass == 1 else leaf / mass, next(dtypes)), self.total)


def _wide(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype in (torch.float16, torch.bfloat16) else leaf


def _narrow(leaf: Any, dtype: torch.dtype | None) -> Any:
    return leaf.to(dtype) if dtype in (torch.float16, torch.bfloat16) else leaf


def _added(total: Any, part: Any) -> Any:
    is_free = isinstance(total, Tensor) and not (total.requires_grad or part.requires_grad)
    return total.add_(part) if is_free else total + part
