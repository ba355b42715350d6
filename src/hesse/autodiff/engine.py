"""Backward passes from given cotangents, without the checks of `torch.autograd.grad`.

These have been made, or cannot fail; and the first of them imports sympy, which takes 0.8 seconds (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch._vmap_internals import _vmap
from torch.autograd.graph import _engine_run_backward

_PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)
_WRONG_IN_BATCHES = {"CdistBackward0"}  # functorch's rule reads expanded distances as if they were contiguous (torch 2.13)


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
    if not _has_one_of(roots, _WRONG_IN_BATCHES):
        with suppress(RuntimeError):  # functorch refuses random numbers of a checkpoint, functions of the user's in a backward
            return _batched(run, tuple(cotangents), len(leaves))
    return _vmap(run, 0, 0, allow_none_pass_through=True)(tuple(cotangents))


def _has_one_of(roots: Sequence[Tensor], names: set[str]) -> bool:
    """Whether a graph has a node of one of some types."""
    pending: list[Any] = [root.grad_fn for root in roots if root.grad_fn is not None]
    seen = set(pending)
    while pending:
        node = pending.pop()
        if type(node).__name__ in names:
            return True
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                pending.append(parent)
    return False


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
