"""Products of a recorded derivative with many vectors at once, in as few operations as can be: made to be recorded again."""

from __future__ import annotations

from contextlib import nullcontext, suppress

import torch
from torch import Tensor

from hesse.autodiff.blocks import pull_block
from hesse.autodiff.compiled.unrecorded import unwatched
from hesse.autodiff.engine import pull_along
from hesse.autodiff.linearize import JacobianOperator
from hesse.autodiff.push import GraphPush
from hesse.autodiff.push_rules import NoPushError
from hesse.autodiff.recording import Recording, dense, inside_functorch


def push_many(recording: Recording, tangents: list[Tensor], *, careful: bool = False) -> list[Tensor]:
    """``J v`` for all tangents along the leading axis.

    Along the graph of the run, batched: on the Brusselator in one dimension (n = 10,000, 4 colors) the optimized record has 53
    operations; forward mode under `vmap` runs the function again and leaves as many, and needs a rule of PyTorch's for each op.
    Where that cannot be done, or the result is to be differentiable, by differentiating the graph twice in reverse mode. The
    function does not run again. Functions of the user's may have another derivative there than in reverse mode: the result is
    to be checked.

    Args:
        recording: of a real function.
        tangents: one a leaf of x, ``[k, *shape]`` with k > 0.
        careful: let `JacobianOperator` choose the way and check it, which may run the function k times (as it always does
            inside of `torch.func` transforms).

    Returns:
        One tensor a leaf of the value, ``[k, *shape]``; differentiable where something upstream requires grad.

    Raises:
        NoPushError: the graph cannot be differentiated by cotangents. UnsupportedError: with `careful`, no way is right.

    Cost: k times the operations of one forward pass; twice that, by differentiating twice.
    """
    if careful or recording.functorch or inside_functorch():
        operator = JacobianOperator(recording)
        return operator.out_space.check(operator.mm(operator.in_space.rebuild(tangents)), "products", 1)
    try:
        if not recording.follows(tangents):
            with suppress(RuntimeError, IndexError):  # a node without a second derivative, saved tensors behind hooks
                push = GraphPush(recording)
                with nullcontext() if push.is_custom else unwatched():
                    return _batched(push, tangents)
        return _by_double_reverse(recording, tangents)
    except (RuntimeError, IndexError) as error:
        raise NoPushError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def _by_double_reverse(recording: Recording, tangents: list[Tensor]) -> list[Tensor]:
    """The derivative of ``u -> J^T u``, which is linear."""
    count, used = tangents[0].shape[0], [y for y in recording.outputs if y.requires_grad]
    pairs: list[tuple[Tensor, Tensor]] = []
    with torch.enable_grad():
        u = [torch.zeros_like(y).requires_grad_() for y in used]
        pulled = pull_along(used, recording.inputs, u, create_graph=True) if used else []
    for g, t in zip(pulled, tangents, strict=False):
        if g is not None and g.requires_grad:
            pairs.append((dense(g), t))
    ends, follow = [g for g, _ in pairs], recording.follows(tangents)
    pushed: dict[int, Tensor | None] = {}
    if pairs:
        try:
            found = pull_along(ends, u, [t for _, t in pairs], create_graph=follow, batched=True)
        except RuntimeError:  # a node that cannot be batched
            found = _one_by_one(ends, u, [t for _, t in pairs], follow)
        pushed = {id(y): t for y, t in zip(used, found, strict=True)}
    done = [pushed.get(id(y)) for y in recording.outputs]
    return [y.new_zeros(count, *y.shape) if t is None else t for y, t in zip(recording.outputs, done, strict=True)]


def _one_by_one(ends: list[Tensor], u: list[Tensor], tangents: list[Tensor], follow: bool) -> list[Tensor]:
    rows = [pull_along(ends, u, [t[k] for t in tangents], create_graph=follow) for k in range(tangents[0].shape[0])]
    whole = [[torch.zeros_like(like) if t is None else t for t, like in zip(row, u, strict=True)] for row in rows]
    return [torch.stack(parts) for parts in zip(*whole, strict=True)]


def _batched(push: GraphPush, tangents: list[Tensor]) -> list[Tensor]:
    try:
        return push.push_all(tangents)
    except RuntimeError:  # a node that cannot be batched
        rows = [push.push([t[k] for t in tangents]) for k in range(tangents[0].shape[0])]
        return [torch.stack(parts) for parts in zip(*rows, strict=True)]


def pull_many(recording: Recording, cotangents: list[Tensor]) -> list[Tensor]:
    """``J^T u`` for all cotangents along the leading axis.

    Args:
        recording: of a real function.
        cotangents: one a leaf of the value, ``[k, *shape]`` with k > 0.

    Returns:
        One tensor a leaf of x, ``[k, *shape]``; differentiable where something upstream requires grad.

    Cost: k backward passes, batched where the ops can be.
    """
    return pull_block(recording, cotangents)
