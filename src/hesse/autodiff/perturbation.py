"""Perturbations of what flows through a model: of its floating-point inputs, or of what one of its submodules returns."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hesse.autodiff.determinism import deterministic
from hesse.autodiff.functional import functional
from hesse.autodiff.fused import differentiable_attention
from hesse.autodiff.model import Model, as_model
from hesse.core import tree
from hesse.core.errors import LeafError, StructureError, UnsupportedError
from hesse.core.tree import Tree


def as_constant_model(model: Any, output: Callable[[Any], Tensor] | None) -> Model:
    """A model whose parameters are held constant: frozen parameters, or none at all, will do.

    Raises:
        As `as_model`.
    """
    if not isinstance(model, nn.Module):
        return as_model(model, output=output)
    f, params = functional(model)
    if params:
        return as_model((f, params), output=output)
    return as_model((lambda _, *given, **named: f({}, *given, **named), {"none": torch.zeros(())}), output=output)


def split_floating(values: Tree, asked: str, what: str, remedy: str) -> tuple[Tree, Tree]:
    """A tree in two: floating-point tensors, and everything else; the place of what is on the other side holds None.

    Raises:
        LeafError: there is no floating-point tensor.
    """
    moving, rest = tree.partition(
        values, lambda _, leaf: isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
    )
    if not tree.leaves(moving):
        found = [
            f"{leaf.dtype} at '{name}'" if name else str(leaf.dtype)
            for name, leaf in tree.named_leaves(values)
            if isinstance(leaf, Tensor)
        ]
        raise LeafError(asked, f"{what}: {', '.join(found[:4]) or 'no tensor'}", remedy)
    return moving, rest


class Activation:
    """What a submodule returns when a model runs, and the model's output as a function of something added to it.

    Args:
        model, inputs: the model and what it is run on.
        at: the submodule's name, as in `named_modules`.
        call: which of its calls is meant, where it is called several times.
        asked: for error messages.

    Attributes:
        example: a tree like the floating-point tensors that the submodule returns, of zeros.

    Raises:
        StructureError: no such submodule, or it is not called. UnsupportedError: it is called several times.
    """

    def __init__(self, model: Model, inputs: Any, at: str, call: int | None, asked: str) -> None:
        self.model, self.inputs, self.at, self.asked = model, inputs, at, asked
        self.part, self.call = _submodule(model, at, asked), call or 0
        seen: list[Any] = []

        def look(index: int, result: Any) -> Any:
            seen.append(tree.map_tree(lambda leaf: torch.zeros_like(leaf) if isinstance(leaf, Tensor) else leaf, result))
            return result

        with torch.no_grad(), differentiable_attention(), deterministic(model, asked):
            self._run(look)
        if not seen or (call is not None and not 0 <= call < len(seen)):
            times = "it is not called" if not seen else f"it is called {len(seen)} times"
            raise StructureError(asked, f"{times} when the model runs: {at!r}", "name a submodule that the forward pass calls")
        if call is None and len(seen) > 1:
            raise UnsupportedError(asked, f"'{at}' is called {len(seen)} times", f"pass call=0 ... call={len(seen) - 1}")
        self.example, _ = split_floating(
            seen[self.call], asked, f"'{at}' returns no floating-point tensor", "name another submodule"
        )

    def output(self, added: Tree) -> Any:
        """What the model returns when `added` (like `example`) is added to what the submodule returns."""

        def add(index: int, result: Any) -> Any:
            if index != self.call:
                return result
            moving, rest = split_floating(result, self.asked, "no floating-point tensor", "name another submodule")
            return tree.combine(tree.map_tree(lambda leaf, more: leaf + more, moving, added), rest)

        return self._run(add)

    def _run(self, change: Callable[[int, Any], Any]) -> Any:
        """Run the model with a hook on the submodule, which this thread alone sees; it is removed whatever happens."""
        thread, calls = threading.get_ident(), 0

        def hook(module: nn.Module, arguments: Any, result: Any) -> Any:
            nonlocal calls
            if threading.get_ident() != thread:
                return result
            calls += 1
            return change(calls - 1, result)

        handle = self.part.register_forward_hook(hook)
        try:
            return self.model.call(self.model.params, self.inputs)
        finally:
            handle.remove()


def _submodule(model: Model, at: str, asked: str) -> nn.Module:
    if model.module is None:
        raise StructureError(asked, "a function, which has no submodules", "pass the nn.Module")
    parts = dict(model.module.named_modules(remove_duplicate=False))
    if at not in parts:
        near = [name for name in parts if name][:8]
        raise StructureError(
            asked, f"no submodule {at!r}", f"one of {near}" if near else "the model has no submodules; pass ''"
        )
    return parts[at]
