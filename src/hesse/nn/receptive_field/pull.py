"""The reverse derivative of a function as a function, and the one pass behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from hesse.autodiff.engine import pull_along
from hesse.autodiff.recording import inside_functorch

Parts = Callable[..., tuple[Tensor, ...]]


def in_batches(cotangents: Sequence[Tensor]) -> bool:
    """Whether a backward pass is run for several cotangents at once, by either `vmap` of PyTorch's."""
    return inside_functorch() or any(is_legacy_batchedtensor(g) for g in cotangents)


def gradients(
    outputs: Sequence[Tensor], leaves: Sequence[Tensor], cotangents: Sequence[Tensor], *, differentiable: bool = False
) -> list[Tensor]:
    """One gradient a leaf, zero for those that are not reached.

    Args:
        outputs: of a graph; those that require no gradient contribute nothing.
        leaves: what to differentiate by.
        cotangents: like the outputs.
        differentiable: whether the gradients are to have a graph of their own.

    Cost: one backward pass.
    """
    pairs = [(y, u) for y, u in zip(outputs, cotangents, strict=True) if y.requires_grad]
    if not pairs:
        return [torch.zeros_like(leaf) for leaf in leaves]
    ys, us = zip(*pairs, strict=True)
    found = pull_along(ys, leaves, us, create_graph=differentiable)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


class Pull:
    """The reverse derivative of a function, as a function of its arguments and the cotangents.

    Args:
        f: returns a tuple of tensors.
        needed: for each of its arguments, whether the gradient is returned.
    """

    def __init__(self, f: Parts, needed: Sequence[bool]) -> None:
        self.f, self.needed = f, needed

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The gradients that are needed; with a graph where gradients are enabled."""
        differentiable = torch.is_grad_enabled()
        count = len(self.needed)
        with temporarily_clear_interpreter_stack() if inside_functorch() else nullcontext(), torch.enable_grad():
            inputs = [_leaf(t, need, differentiable) for t, need in zip(tensors[:count], self.needed, strict=True)]
            outputs = self.f(*inputs)
        leaves = [t for t, need in zip(inputs, self.needed, strict=True) if need]
        return tuple(gradients(outputs, leaves, tensors[count:], differentiable=differentiable))


def _leaf(tensor: Tensor, needed: bool, differentiable: bool) -> Tensor:
    """The tensor with its graph where the result is to have one; else a leaf, which is a variable where it is needed."""
    if differentiable and (tensor.requires_grad or not needed):
        return tensor
    return tensor.detach().requires_grad_(needed)
