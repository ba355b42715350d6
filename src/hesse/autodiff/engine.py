"""Backward passes from given cotangents, without the checks of `torch.autograd.grad`.

These have been made, or cannot fail; and the first of them imports sympy, which takes 0.8 seconds (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._vmap_internals import _vmap
from torch.autograd.graph import _engine_run_backward

_PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)


def pull_along(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    *,
    create_graph: bool,
    batched: bool = False,
) -> Sequence[Tensor | None]:
    """The gradients of a graph, which stays.

    Args:
        outputs: of the graph; all require grad.
        inputs: what to differentiate by.
        cotangents: like the outputs; with `batched`, with an axis in front.
        create_graph: whether the gradients are to have a graph of their own.
        batched: one pass for all cotangents along the leading axis.

    Returns:
        One gradient an input, None where it is not reached.

    Raises:
        RuntimeError: torch's own, where a node has no derivative or cannot be batched.

    Cost: one backward pass.
    """
    if not all(type(t) in _PLAIN for t in (*outputs, *inputs)):  # a subclass may say itself what a gradient is
        return torch.autograd.grad(outputs, inputs, cotangents, retain_graph=True, create_graph=create_graph, allow_unused=True,
                                   is_grads_batched=batched)  # fmt: skip
    roots, leaves = tuple(outputs), tuple(inputs)

    def run(given: Any) -> Any:
        return _engine_run_backward(roots, given, True, create_graph, leaves, True, accumulate_grad=False)

    return _vmap(run, 0, 0, allow_none_pass_through=True)(tuple(cotangents)) if batched else run(tuple(cotangents))
