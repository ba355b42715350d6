"""A tree of parameters inside a module: every leaf is registered by its path."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hesse.core import tree
from hesse.core.errors import StructureError
from hesse.core.tree import Tree


class ParameterTree:
    """The nesting of a module's parameters; the leaves themselves stand in the module.

    Args:
        params: a tree of tensors and Python floats, of which only the nesting, the paths and the static leaves are kept.
    """

    def __init__(self, params: Tree) -> None:
        self._nesting = tree.map_tree(lambda leaf: 0.0, params)
        self._structure = tree.flatten(self._nesting)[1]
        self.paths = [path or "params" for path, _ in tree.named_leaves(self._nesting)]

    def register(self, module: nn.Module, params: Tree) -> None:
        """Put the leaves into a module; a tensor that stands in several places is one parameter."""
        shared: dict[int, Tensor] = {}
        for path, leaf in zip(self.paths, tree.leaves(params), strict=True):
            register(*_place(module, path), leaf, shared)

    def read(self, module: nn.Module) -> Tree:
        """The tree of the module's present parameters."""
        return self._structure.unflatten([_read(module, path) for path in self.paths])

    def __reduce__(self) -> tuple[Any, ...]:
        return ParameterTree, (self._nesting,)  # torch's description of a structure warns when it is pickled or copied


class _Branch(nn.Module):
    """A node of a tree of parameters; its leaves and branches stand in it by their keys."""

    def _get_name(self) -> str:
        return "Parameters"

    def extra_repr(self) -> str:
        return ", ".join(shapes(self, [*self._parameters, *self._buffers]))


def register(module: nn.Module, name: str, leaf: Any, shared: dict[int, Tensor]) -> None:
    """Put a copy of a leaf into a module; `shared` holds the copies made so far, by the identity of the leaf."""
    if leaf is None or isinstance(leaf, nn.Parameter):
        module.register_parameter(name, leaf)
        return
    if not isinstance(leaf, (Tensor, float, complex)):
        raise StructureError(
            f"'{name}' becomes a parameter.", f"a {type(leaf).__name__}", "pass a tensor, an nn.Parameter or None"
        )
    if id(leaf) not in shared or not isinstance(leaf, Tensor):
        value = torch.as_tensor(leaf).detach().clone()
        shared[id(leaf)] = nn.Parameter(value) if value.is_floating_point() or value.is_complex() else value
    value = shared[id(leaf)]
    if isinstance(value, nn.Parameter):
        module.register_parameter(name, value)
    else:
        module.register_buffer(name, value)


def _place(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module, made where missing, and the name in it, where the leaf of this path is registered."""
    at, parts = module, path.split(".")
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        known = part in at._modules if not last else False
        if not known and (hasattr(at, part) or not part):
            raise StructureError(
                f"Each leaf of params= becomes a parameter called by its path, here '{path}'.",
                f"the name '{part}', which is taken or empty",
                "rename the key (names of parts of nn.Module, such as 'type' or 'forward', cannot be used)",
            )
        if not last:
            if not known:
                at.add_module(part, _Branch())
            at = at.get_submodule(part)
    return at, parts[-1]


def shapes(module: nn.Module, names: list[str]) -> list[str]:
    """``name=shape`` of those of these leaves that are not None."""
    leaves = [(name, _read(module, name)) for name in names]
    return [f"{name}={tuple(leaf.shape)}" for name, leaf in leaves if leaf is not None]


def _read(module: nn.Module, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module
