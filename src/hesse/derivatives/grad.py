"""`grad`: gradients of functions of arbitrarily nested parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hesse.core import tree
from hesse.core.tree import Tree


class GradResult(tuple[Any, ...]):
    """What a gradient function returns: a tuple ``(grads, value, *extras)`` with names for its parts."""

    @property
    def grads(self) -> Tree:
        """The gradients, in the structure of the parameters."""
        return self[0]

    @property
    def value(self) -> Any:
        """The first value that the function returned."""
        return self[1]

    @property
    def extras(self) -> tuple[Any, ...]:
        """Every further value that the function returned."""
        return tuple(self[2:])


def grad(f: Callable[..., Any], argnums: int = 0) -> Callable[..., GradResult]:
    """The gradient function of `f`."""

    def df(*args: Any, **kwargs: Any) -> GradResult:
        leaves, structure = tree.flatten(args[argnums])
        follow = torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in leaves)
        with torch.enable_grad():
            inputs = [torch.as_tensor(t) for t in leaves]
            inputs = [t.view_as(t) if follow and t.requires_grad else t.detach().requires_grad_() for t in inputs]
            given = list(args)
            given[argnums] = structure.unflatten(inputs)
            out = f(*given, **kwargs)
            values = out if isinstance(out, tuple) else (out,)
            grads = torch.autograd.grad(values[0], inputs, create_graph=follow, allow_unused=True, materialize_grads=True)
        if not follow:
            values = tree.map_tree(lambda y: y.detach() if isinstance(y, torch.Tensor) else y, values)
        return GradResult((structure.unflatten(list(grads)), *values))

    return df
