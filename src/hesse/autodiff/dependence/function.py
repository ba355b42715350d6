"""Which elements of its input every element of a function's value, or of its gradient, depends on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hesse.autodiff.dependence.following import Following, follow, sets_of
from hesse.autodiff.dependence.memory import Memory
from hesse.autodiff.dependence.sets import Sets, identity
from hesse.autodiff.fused import differentiable_attention
from hesse.autodiff.recording import Function, as_variables, nodes, output_leaves
from hesse.core.errors import NonScalarError, UnsupportedError
from hesse.core.space import Space
from hesse.core.tree import Tree


@dataclass(frozen=True)
class Dependence:
    """What depends on what.

    Attributes:
        sets: ``[outputs, inputs]``, a sparse boolean matrix.
        in_space, out_space: of the function's input, and of what was looked at.
        fallbacks: ops without a rule, which were taken to mix everything, and how often they ran.
        branches: reads of values that depend on the input, with their lines; only where values were taken for what they are.
        analyzed: "primal": the function as it ran. "reverse": its backward pass, since it holds custom functions, whose
            derivatives are whatever their backward says.
    """

    sets: Sets
    in_space: Space
    out_space: Space
    fallbacks: Counter[str]
    branches: tuple[str, ...]
    analyzed: Literal["primal", "reverse"]


def dependence(f: Function, x: Tree, asked: str, *, local: bool = False, gradient: bool = False) -> Dependence:
    """Run a function once and follow every element.

    Args:
        f: any function of a tree, returning a tree of tensors.
        x: the point.
        asked: what is asked of hesse, for error messages.
        local: take values for what they are at x: branches, masks, orders.
        gradient: look at the gradient of f, which has to return one number, instead of f.

    Returns:
        Sets that hold every element a derivative may not vanish for; at x if `local`, at any point otherwise.

    Raises:
        UnsupportedError: Python reads a value that depends on x, and not `local`; complex numbers; inside `torch.func`.
        LeafError, DeviceError, NonFiniteError, StructureError, MemoryBudgetError: as the names say, with the leaf.

    Cost: one run of f (with its backward pass for a gradient, or where f holds custom functions), about 50 microseconds more
    an op, and work that grows with the entries of the sets.
    """
    tensors, in_space = as_variables(x, asked)
    if any(t.is_complex() for t in tensors):
        raise UnsupportedError(asked, "complex numbers in x", "pass real and imaginary parts as two leaves")
    spaces: list[Space] = []
    with torch.enable_grad(), differentiable_attention():
        inputs = [t.detach().clone().requires_grad_() for t in tensors]
        point = in_space.rebuild(inputs)

        def run() -> list[Tensor]:
            outputs, space = output_leaves(f(point), asked)
            if gradient:
                outputs, space = _gradient(outputs, inputs, asked), in_space
            spaces.append(space)
            return outputs

        outputs, sets, following, memory = follow(run, inputs, local=local)
        _require_straight(following, asked)
        custom = any(hasattr(node, "_forward_cls") for node in nodes([y.grad_fn for y in outputs if y.grad_fn is not None]))
        if custom:
            sets = _by_reverse(outputs, inputs, following, memory)
    analyzed = "reverse" if custom else "primal"
    return Dependence(sets, in_space, spaces[0], following.fallbacks, tuple(following.branches), analyzed)


def _gradient(outputs: Sequence[Tensor], inputs: Sequence[Tensor], asked: str) -> list[Tensor]:
    if len(outputs) != 1 or outputs[0].numel() != 1:
        shapes = ", ".join(str(tuple(y.shape)) for y in outputs)
        raise NonScalarError(asked, f"a value of shape {shapes}", "sum it, or take one element of it")
    if not outputs[0].requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    grads = torch.autograd.grad(outputs[0].sum(), inputs, create_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)]


def _require_straight(following: Following, asked: str) -> None:
    if following.branches and not following.local:
        raise UnsupportedError(
            asked,
            f"Python reads a value that depends on x: {following.branches[0]}",
            "pass local=True for the pattern of the path that is taken at x, or write the branch as torch.where",
        )


def _by_reverse(outputs: Sequence[Tensor], inputs: Sequence[Tensor], following: Following, memory: Memory) -> Sets:
    """Sets by the backward pass: those of the gradient's elements in terms of the cotangent's, turned around."""
    sizes = [y.numel() for y in outputs]
    memory.restart(sum(sizes))
    cotangents, start = [], 0
    for y in outputs:
        u = torch.ones_like(y)
        memory.put(u, identity(u.numel(), sum(sizes), start), varies=True)
        start += u.numel()
        cotangents.append(u)
    pairs = [(y, u) for y, u in zip(outputs, cotangents, strict=True) if y.requires_grad]
    with following:
        grads = torch.autograd.grad([y for y, _ in pairs], list(inputs), [u for _, u in pairs], allow_unused=True)
    return sets_of(memory, grads, [x.numel() for x in inputs]).T.tocsr()
