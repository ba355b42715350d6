"""One call of a user's function: its arguments by name, and trees of tensors taken apart and put together again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor, nn

from hesse.core import tree
from hesse.core.tree import Structure, Tree


@dataclass(frozen=True, eq=False)
class Packing:
    """How a tree is put together from its tensors; everything else in it, Python floats too, is constant.

    Attributes:
        structure: of the tree; None for a bare tensor.
        constants: ``(index, value)`` of the leaves that are no tensors.
        paths: of the tensors, in order.
    """

    structure: Structure | None
    constants: tuple[tuple[int, Any], ...]
    paths: tuple[str, ...]

    def unpack(self, tensors: Sequence[Tensor]) -> Tree:
        """The tree with these tensors in their places."""
        if self.structure is None:
            return tensors[0]
        leaves, constants, remaining = [], dict(self.constants), iter(tensors)
        for index in range(len(self.constants) + len(self.paths)):
            leaves.append(constants[index] if index in constants else next(remaining))
        return self.structure.unflatten(leaves)


_BARE = Packing(None, (), ("",))
_PLAIN = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}


def pack(value: Tree) -> tuple[list[Tensor], Packing]:
    """The tensors of a tree, and how to put it together from them."""
    if isinstance(value, Tensor):
        return [value], _BARE
    named = tree.named_leaves(value)
    _, structure = tree.flatten(value)
    constants = tuple((index, leaf) for index, (_, leaf) in enumerate(named) if not isinstance(leaf, Tensor))
    tensors = [(path, leaf) for path, leaf in named if isinstance(leaf, Tensor)]
    return [leaf for _, leaf in tensors], Packing(structure, constants, tuple(path for path, _ in tensors))


class Call:
    """A function bound to the arguments of one call.

    Args:
        function: of the user.
        arguments: its arguments by name, in the order of the signature.
        positional: how many of them go by position.

    Attributes:
        names: of the arguments.
        packings: how each argument is put together.
        tensors: all tensors of the arguments, in order.
        output: how the function's result is put together, known once it has run.
        pushed: whether a forward-mode derivative was taken through the call.
        followed: whether gradients were switched on at the call.
        transformed: whether the call stood inside a `torch.func` transform.
    """

    def __init__(self, function: Callable[..., Any], arguments: dict[str, Any], positional: int) -> None:
        self.function, self.positional, self.names = function, positional, tuple(arguments)
        packed = [pack(value) for value in arguments.values()]
        self.packings = [packing for _, packing in packed]
        self.tensors = [tensor for tensors, _ in packed for tensor in tensors]
        ends = list(accumulate((len(packing.paths) for packing in self.packings), initial=0))
        self._spans = [(index, slice(start, end)) for index, (start, end) in enumerate(pairwise(ends))]
        self.output = _BARE
        self.pushed = self.followed = self.transformed = False

    def spans(self) -> list[tuple[int, slice]]:
        """Argument by argument, which of the tensors are its own."""
        return self._spans

    def values(self, tensors: Sequence[Any]) -> list[Any]:
        """The arguments, put together from these tensors."""
        return [self.packings[index].unpack(tensors[span]) for index, span in self.spans()]

    def pass_to(self, function: Callable[..., Any], first: Sequence[Any], tensors: Sequence[Tensor]) -> Any:
        """Call a function with some arguments in front of those of this call."""
        values = self.values(tensors)
        named = dict(zip(self.names[self.positional :], values[self.positional :], strict=True))
        return function(*first, *values[: self.positional], **named)

    def label(self, index: int) -> str:
        """How errors name an argument."""
        return f"argument {index} ('{self.names[index]}')"


def bind(function: Callable[..., Any], signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The arguments of a call by name, with defaults filled in; those of ``*args`` are called ``args[0]`` and so on."""
    parameters = signature.parameters
    if not kwargs and len(args) == len(parameters) and all(p.kind in _PLAIN for p in parameters.values()):
        return Call(function, dict(zip(parameters, args, strict=True)), len(args))
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    arguments: dict[str, Any] = {}
    positional = 0
    for name, value in bound.arguments.items():
        kind = parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            arguments |= {f"{name}[{index}]": part for index, part in enumerate(value)}
        elif kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= value
            continue
        else:
            arguments[name] = value
        if kind is not inspect.Parameter.KEYWORD_ONLY:
            positional = len(arguments)
    return Call(function, arguments, positional)


def name_of(tensor: Tensor, function: Callable[..., Any]) -> str:
    """How errors name a tensor that a function reads: by the variable, global or attribute that holds it, if it is found."""
    code = getattr(function, "__code__", None)
    held = inspect.getclosurevars(function) if code is not None else None
    known = {**held.globals, **held.nonlocals} if held is not None else {}
    for name, value in known.items():
        if value is tensor:
            return f"'{name}'"
        parts = value.named_parameters() if isinstance(value, nn.Module) else ()
        if isinstance(value, (dict, list, tuple)):
            parts = tree.named_leaves(value)
        for path, leaf in parts:
            if leaf is tensor:
                return f"'{name}.{path}'"
    return f"a tensor of shape {tuple(tensor.shape)}"
