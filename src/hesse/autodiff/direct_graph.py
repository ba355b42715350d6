"""Questions about the graph of one run, asked at each call of `grad`: hence a walk that does little at a node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from sys import getrefcount
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.fused import FUSED_RECURRENCES
from hesse.autodiff.plain_bags import FUSED_BAGS
from hesse.autodiff.weight_norm import FUSED_WEIGHT_NORM
from hesse.core import tree

_LEAF: type = type(torch.autograd.graph.get_gradient_edge(torch.ones((), requires_grad=True)).node)
_HELD_BY_GRAPH = 3  # by the graph, by the variable that looks at it, and by the call that counts
_FUSED = FUSED_RECURRENCES | FUSED_WEIGHT_NORM | FUSED_BAGS


def hangs_on_others(outputs: Any, inputs: Sequence[Tensor]) -> bool:
    """Whether some output hangs on a tensor that requires grad and is none of the inputs.

    A leaf that was made inside the function (by a gradient taken there) and that nobody holds any more does not count: no
    derivative by it can be asked for.
    """
    own = set(map(id, inputs))
    nodes: list[Any] = []  # grows while it is walked
    for y in (outputs,) if type(outputs) is Tensor else _tensors(outputs):
        if y.grad_fn is not None:
            nodes.append(y.grad_fn)
        elif y.requires_grad and id(y) not in own:
            return True
    seen = set(nodes)
    see, push = seen.add, nodes.append
    for node in nodes:
        for parent, _ in node.next_functions:
            if type(parent) is _LEAF:
                leaf = parent.variable
                if id(leaf) not in own and getrefcount(leaf) > _HELD_BY_GRAPH:
                    return True
            elif parent is not None and parent not in seen:
                see(parent)
                push(parent)
    return False


def has_fused_kernel(outputs: Any) -> bool:
    """Whether some output was computed by a fused kernel without a second derivative, or with a wrong one."""
    seen = {y.grad_fn for y in _tensors(outputs) if y.grad_fn is not None}
    pending = list(seen)
    while pending:
        node = pending.pop()
        name = type(node).__name__
        if name in _FUSED or name.startswith("ScaledDotProduct"):
            return True
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                pending.append(parent)
    return False


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif type(outputs) is tuple:
        for part in outputs:
            yield from _tensors(part)
    elif outputs is not None:
        yield from (y for y in tree.leaves(outputs) if isinstance(y, Tensor))
