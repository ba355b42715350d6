"""A given pattern beside the first point: where entries are zero by accident at the point itself, they are seldom so there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hesse.core import random, tree
from hesse.core.errors import StructureError
from hesse.core.tree import Tree
from hesse.sparse.evaluate import Program, Task

_STEP = 0.01  # of what the elements of a leaf are


def require_beside(task: Task, x: Tree, outputs: list[Tensor]) -> None:
    """Check a pattern at a random point near x, if the function and its value are as they are at x.

    Args:
        task: what is computed, with the pattern.
        x: a point at which the pattern was right.
        outputs: leaves of the function's value there.

    Raises:
        StructureError: an entry that the pattern misses. All other errors are the function's, which need not be defined there.

    Cost: an evaluation: one run, and a product a color.
    """
    held: list[bool] = []
    sizes = [y.numel() for y in outputs]

    def noted(point: Any) -> Any:
        value = task.f(point)
        leaves = [leaf.detach() for _, leaf in tree.named_leaves(value) if isinstance(leaf, Tensor)]
        held.append([y.numel() for y in leaves] == sizes and all(bool(y.isfinite().all()) for y in leaves))
        return value

    generator = random.make_generator()
    with torch.no_grad():
        point = tree.map_tree(lambda leaf: _moved(leaf, generator), x)
        try:
            Program(replace(task, f=noted), every_call=False)(point)
        except StructureError:
            if held and all(held):
                raise
        except Exception:  # of whatever kind: the user did not ask for this point
            return


def _moved(leaf: Any, generator: torch.Generator) -> Any:
    """Each element by a hundredth of its size, zeros by a hundredth of the largest one's."""
    if not isinstance(leaf, Tensor):
        return _moved(torch.tensor(float(leaf), dtype=torch.float64), generator).item() if isinstance(leaf, float) else leaf
    own = leaf.detach()
    size = own.abs().amax() if own.numel() else torch.ones((), dtype=own.dtype)
    size = torch.where(size > 0, size, torch.ones_like(size))
    noise = _STEP * random.normal(own.shape, own.dtype, own.device, generator)
    return own + noise * torch.where(own == 0, size, own)
