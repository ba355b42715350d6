"""Weighted sums of trees, in float32 for 16-bit numbers; vectors whose derivatives are such sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hesse.core import tree
from hesse.core.tree import Tree

_NARROW = (torch.float16, torch.bfloat16)


def handed_out(v: Tree) -> Callable[[], Tree]:
    """A vector for each of several products, such that its derivatives by all of them are added up in float32.

    Autograd adds what comes back to a tensor in the tensor's own dtype. A vector of 16 bits that requires grad is therefore
    made anew for every product, of a copy in float32.
    """
    if not any(isinstance(leaf, Tensor) and leaf.requires_grad and leaf.dtype in _NARROW for leaf in tree.leaves(v)):
        return lambda: v
    wide = tree.map_tree(_wide, v)
    return lambda: tree.map_tree(lambda leaf, own: _narrow(leaf, getattr(own, "dtype", None)), wide, v)


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
    return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype in _NARROW else leaf


def _narrow(leaf: Any, dtype: torch.dtype | None) -> Any:
    return leaf.to(dtype) if dtype in _NARROW else leaf


def _added(total: Any, part: Any) -> Any:
    is_free = isinstance(total, Tensor) and not (total.requires_grad or part.requires_grad)
    return total.add_(part) if is_free else total + part
