"""One function on many arguments of the same shapes, in one batched pass where that can be done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.recording import inside_vmap
from hesse.core import tree
from hesse.core.errors import HesseError
from hesse.core.tree import Tree


def call_together(f: Callable[[Any], Tensor], arguments: Sequence[Tree]) -> list[Tensor]:
    """``[f(a) for a in arguments]``, by `torch.func.vmap` where it agrees with a plain call on the first argument.

    Args:
        f: a function of a tree that returns a tensor; it may differentiate by what it closes over.
        arguments: at least one tree. Trees of other shapes than the first, and functions that cannot be batched (branches on
            data, ``.item()``), are called one by one.

    Cost: two calls of f on one argument, the second one on all of them at once; or a call an argument.
    """
    first = f(arguments[0])
    if len(arguments) > 1 and not inside_vmap():
        try:
            stacked = tree.map_tree(lambda *parts: torch.stack(parts), *arguments)
            found = torch.func.vmap(f)(stacked)
        except (HesseError, RuntimeError, TypeError, ValueError):
            found = None
        if found is not None and _agree(found[0], first):
            return list(found)
    return [first, *(f(argument) for argument in arguments[1:])]


def _agree(found: Tensor, expected: Tensor) -> bool:
    slack = torch.finfo(expected.dtype).eps ** 0.5
    size = float(expected.detach().abs().max()) if expected.numel() else 0.0
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=slack, atol=slack * size)
