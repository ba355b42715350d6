"""Derivatives of a program by plain `torch.autograd.grad`, and trees walked without hesse."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


def rebuild(node: Any, visit: Callable[[Any], Any]) -> Any:
    """The tree with every leaf that can be differentiated (tensor, float, complex number) replaced."""
    if isinstance(node, (Tensor, float, complex)):
        return visit(node)
    if isinstance(node, dict):
        return type(node)((key, rebuild(child, visit)) for key, child in node.items())
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return type(node)(*(rebuild(child, visit) for child in node))
    if isinstance(node, (list, tuple)):
        return type(node)(rebuild(child, visit) for child in node)
    if dataclasses.is_dataclass(node):
        fields = {field.name: rebuild(getattr(node, field.name), visit) for field in dataclasses.fields(node)}
        return type(node)(**fields)
    return node


def walk(node: Any) -> Iterator[Any]:
    """Every leaf in order, static ones too."""
    if isinstance(node, dict):
        for key, child in node.items():
            yield key
            yield from walk(child)
    elif isinstance(node, (list, tuple)):
        for child in node:
            yield from walk(child)
    elif dataclasses.is_dataclass(node):
        for field in dataclasses.fields(node):
            yield from walk(getattr(node, field.name))
    else:
        yield node


def weighted(gradients: list[Tensor]) -> Tensor:
    """A scalar in which every element of every gradient has a weight of its own."""
    total = torch.zeros((), dtype=torch.float64)
    for g in gradients:
        total = total + (g * torch.cos(torch.arange(g.numel(), dtype=g.dtype)).reshape(g.shape)).sum()
    return total


def first(f: Callable[..., Any], args: Any, kwargs: Any, *, create_graph: bool = False) -> tuple[list[Tensor], Any, list]:
    """Gradients leaf by leaf, what `f` returned, and the leaves that were differentiated."""
    leaves: list[Tensor] = []

    def visit(leaf: Any) -> Tensor:
        fresh = leaf.detach() if isinstance(leaf, Tensor) else torch.tensor(leaf, dtype=torch.float64)
        leaves.append(fresh.requires_grad_())
        return leaves[-1]

    out = f(rebuild(args[0], visit), *args[1:], **kwargs)
    value = out[0] if isinstance(out, tuple) else out
    options = {"create_graph": create_graph, "allow_unused": True, "materialize_grads": True}
    return list(torch.autograd.grad(value, leaves, **options)), out, leaves


def second(f: Callable[..., Any], args: Any, kwargs: Any) -> list[Tensor]:
    """Gradients of the weighted sum of the gradients."""
    gradients, _, leaves = first(f, args, kwargs, create_graph=True)
    total = weighted(gradients)
    if not total.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return list(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))
