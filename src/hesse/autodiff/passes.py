"""Single passes of plain autograd over a user's function, for those who check them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor


def backward_pass(
    outputs: Sequence[Tensor], leaves: Sequence[Tensor], cotangents: Sequence[Tensor | None], *, differentiable: bool = False
) -> list[Tensor]:
    """The gradients of a graph that stays; zeros for leaves that are not reached.

    Args:
        outputs: of the graph; those that require no gradient contribute nothing.
        leaves: what to differentiate with respect to.
        cotangents: like the outputs; None for outputs that get none.
        differentiable: whether the gradients are to have a graph of their own.

    Returns:
        One gradient a leaf, dense.

    Cost: one backward pass.
    """
    pairs = [(y, u) for y, u in zip(outputs, cotangents, strict=True) if y.requires_grad and u is not None]
    if not pairs:
        return [torch.zeros_like(leaf) for leaf in leaves]
    ys, us = zip(*pairs, strict=True)
    gradients = torch.autograd.grad(ys, leaves, us, retain_graph=True, create_graph=differentiable, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g.to_dense() for g, x in zip(gradients, leaves, strict=True)]


def forward_pass(
    f: Callable[[list[Tensor]], list[Tensor]], leaves: Sequence[Tensor], tangents: Sequence[Tensor]
) -> list[Tensor]:
    """The tangents of a function's outputs by forward mode; zeros for outputs that do not move.

    Args:
        f: from leaves to outputs.
        leaves: the point.
        tangents: like the leaves.

    Returns:
        One tangent an output.

    Raises:
        RuntimeError: torch's own, where an operation has no forward mode.

    Cost: one forward-mode pass.
    """
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x.detach(), v) for x, v in zip(leaves, tangents, strict=True)]
        unpacked = [forward_ad.unpack_dual(y) for y in f(duals)]
        return [torch.zeros_like(part.primal) if part.tangent is None else part.tangent.clone() for part in unpacked]
