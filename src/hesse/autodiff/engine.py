"""Backward passes from given cotangents, without the checks of `torch.autograd.grad`.

These have been made, or cannot fail; and the first of them imports sympy, which takes 0.8 seconds (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    if not batched:
        return run(tuple(cotangents))
    try:
        return _batched(run, tuple(cotangents), len(leaves))
    except RuntimeError:  # what functorch refuses: random numbers of a checkpoint, functions of the user's within a backward
        return _vmap(run, 0, 0, allow_none_pass_through=True)(tuple(cotangents))


def _batched(run: Callable[[Any], Any], cotangents: tuple[Tensor, ...], count: int) -> list[Tensor | None]:
    """By functorch's rules, of which there are more than of the ones behind ``is_grads_batched=True``.

    The optimized record of a Hessian with a product and slices has 143 operations instead of 315.
    """
    reached: list[int] = []

    def run_reached(*given: Tensor) -> tuple[Tensor, ...]:
        found = run(given)
        reached[:] = [index for index, g in enumerate(found) if g is not None]
        return tuple(found[index] for index in reached)

    found = torch.func.vmap(run_reached)(*cotangents)
    known = dict(zip(reached, found, strict=True))
    return [known.get(index) for index in range(count)]
