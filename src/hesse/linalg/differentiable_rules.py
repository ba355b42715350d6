"""Solutions that can be differentiated: the open rule that `solve` and `lstsq` ask first where somebody wants derivatives."""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from hesse.core import tree
from hesse.core.errors import UnsupportedError
from hesse.core.tree import Tree
from hesse.operators import LinearOperator
from hesse.operators.sparse import is_dual


@singledispatch
def differentiable_rule(A: LinearOperator, b: Tree, square: bool) -> Tree | None:
    """The solution of least squares and least norm as a differentiable function of b and of what `A` is made of, or None.

    Args:
        A: the operator; register more with ``@differentiable_rule.register(MyOperator)``.
        b: a tree of its `out_space`, with batch axes in front; a leaf, or a number behind A, has derivatives.
        square: A has to be square and regular; None if it is not.
    """
    return None


def has_derivatives(*tensors: object) -> bool:
    """Whether one of the tensors is looked at by autograd, forward mode, or a transform of `torch.func`."""
    for t in tensors:
        if not isinstance(t, Tensor):
            continue
        if is_functorch_wrapped_tensor(t) or is_dual(t) or (t.requires_grad and torch.is_grad_enabled()):
            return True
    return False


def differentiable_solution(A: LinearOperator, b: Tree, question: str) -> Tree | None:
    """What `differentiable_rule` says; None where it says nothing, so that plain numbers are computed.

    Raises:
        UnsupportedError: within a transform of `torch.func`, where plain numbers would have silent zeros for derivatives.
    """
    found = differentiable_rule(A, b, question == "solve")
    if found is None and any(
        isinstance(leaf, Tensor) and is_functorch_wrapped_tensor(leaf) for _, leaf in tree.named_leaves(b)
    ):
        raise UnsupportedError(
            f"{question} gives numbers without derivatives for this operator.",
            f"a right-hand side within a transform of torch.func, for {A}",
            "differentiate hesse.pinv(A) @ b where that has derivatives; instead of vmap pass batch axes in front of b",
        )
    return found
