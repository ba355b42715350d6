"""Products of a recorded derivative with many vectors at once, in as few operations as can be: made to be recorded again."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from hesse.autodiff.blocks import pull_block
from hesse.autodiff.compiled.unrecorded import unwatched
from hesse.autodiff.linearize import JacobianOperator
from hesse.autodiff.push import GraphPush
from hesse.autodiff.recording import Recording, inside_functorch


def push_many(recording: Recording, tangents: list[Tensor], *, careful: bool = False) -> list[Tensor]:
    """``J v`` for all tangents along the leading axis.

    Along the graph of the run, batched: on the Brusselator in one dimension (n = 10,000, 4 colors) the optimized record has 53
    operations; forward mode under `vmap` runs the function again and leaves as many, and needs a rule of PyTorch's for each op.

    Args:
        recording: of a real function.
        tangents: one a leaf of x, ``[k, *shape]`` with k > 0.
        careful: let `JacobianOperator` choose the way and check it.

    Returns:
        One tensor a leaf of the value, ``[k, *shape]``; differentiable where something upstream requires grad.

    Cost: k times the operations of one forward pass.
    """
    if not (careful or recording.functorch or inside_functorch() or recording.follows(tangents)):
        try:
            push = GraphPush(recording)
            with nullcontext() if push.is_custom else unwatched():
                return _batched(push, tangents)
        except (RuntimeError, IndexError):  # a node without a second derivative, saved tensors behind hooks
            pass
    operator = JacobianOperator(recording)
    return operator.out_space.check(operator.mm(operator.in_space.rebuild(tangents)), "products", 1)


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
