"""The leaves of a function's parameters as tensors that can be differentiated, and the way back into their nesting.

Nests of plain dicts, lists and tuples of tensors, which most parameters are, take a short walk of their own: pytree's costs
as much as a small gradient. Everything else (named tuples, dataclasses, registered types) goes through `hesse.core.tree`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from hesse.core import tree
from hesse.core.errors import DeviceError, LeafError, StructureError
from hesse.core.tree import Tree

_TENSORS = frozenset({Tensor, Parameter})
_STATIC = frozenset({int, bool, str, bytes, type(None)})
_NUMBERS = frozenset({float, complex})
_requires_grad = attrgetter("requires_grad")
LINKED, OTHERS = 1, 2


class Variables:
    """The variable leaves of a tree.

    Attributes:
        tree: the tree as it was given.
        leaves: its tensors and Python numbers, in order.
        has_numbers: whether there are Python floats or complex numbers among them.
    """

    __slots__ = ("_is_flat", "_structure", "has_numbers", "leaves", "tree")

    def __init__(self, given: Tree, asked: str) -> None:
        self.tree = given
        self._structure: tree.Structure | None = None
        self._is_flat = type(given) is dict and _TENSORS.issuperset(map(type, given.values()))
        if self._is_flat and given:
            self.leaves: list[Any] = list(given.values())
            self.has_numbers = False
            return
        self.leaves = []
        if not tree.gather_plain(given, self.leaves):
            self.leaves, self._structure = tree.flatten(given)
            _refuse_foreign_leaves(given, self._structure, asked)
        if not self.leaves:
            raise StructureError(asked, "no tensor or float in it", "pass a tensor or a tree of tensors to differentiate by")
        self.has_numbers = not _TENSORS.issuperset(map(type, self.leaves)) and any(map(_is_number, self.leaves))

    def tensors(self) -> list[Tensor]:
        """The leaves, Python numbers as 0-d tensors of double precision, which is Python's own, on the device of the first
        tensor. Beside tensors with axes a 0-d tensor does not raise the dtype of a result."""
        if not self.has_numbers:
            return self.leaves
        device = next((leaf.device for leaf in self.leaves if isinstance(leaf, Tensor)), None)
        return [leaf if isinstance(leaf, Tensor) else _number(leaf, device) for leaf in self.leaves]

    def restore(self, leaves: Iterable[Any]) -> Tree:
        """The tree with other leaves; ints, bools, strings and None are handed back in their places."""
        if self._is_flat:
            return dict(zip(self.tree, leaves, strict=True))
        if self._structure is not None:
            return self._structure.unflatten(leaves)
        return _restore(self.tree, iter(leaves))

    def like(self, leaves: Sequence[Tensor], attached: bool) -> Tree:
        """The tree of gradients: a tensor for a tensor, and for a Python number a number, unless it is to be differentiated."""
        if self._is_flat:
            return dict(zip(self.tree, leaves, strict=True))
        if not self.has_numbers or attached:
            return self.restore(leaves)
        pairs = zip(self.leaves, leaves, strict=True)
        return self.restore([new if isinstance(old, Tensor) else new.item() for old, new in pairs])

    def names(self) -> list[str]:
        """The path of each leaf, for messages: ``"a.b.0"``, or "the argument" for a bare one."""
        return [name or "the argument" for name, _ in tree.named_leaves(self.tree)]


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, (float, complex))


def _number(value: float | complex, device: torch.device | None) -> Tensor:
    dtype = torch.complex128 if isinstance(value, complex) else torch.float64
    return torch.tensor(value, dtype=dtype, device=device)


def _restore(node: Any, leaves: Iterator[Any]) -> Any:
    kind = type(node)
    if kind is dict:
        found = {}
        for key, child in node.items():
            found[key] = next(leaves) if type(child) is Tensor else _restore(child, leaves)
        return found
    if kind is list or kind is tuple:
        parts = []
        for child in node:
            parts.append(next(leaves) if type(child) is Tensor else _restore(child, leaves))
        return parts if kind is list else tuple(parts)
    return node if kind in _STATIC else next(leaves)


def _refuse_foreign_leaves(given: Tree, structure: tree.Structure, asked: str) -> None:
    foreign = {index: leaf for index, leaf in structure.static if not isinstance(leaf, (int, str, bytes, type(None)))}
    if not foreign:
        return
    others = tuple((index, None) for index in range(structure.spec.num_leaves) if index not in foreign)
    named = tree.named_leaves(tree.Structure(structure.spec, others).unflatten([0.0] * len(foreign)))
    leaf = next(iter(foreign.values()))
    remedy = "convert it to a tensor (torch.as_tensor), or close over it: lambda p: f(p, constant)"
    if isinstance(leaf, nn.Module):
        remedy = "take the module's parameters: f, params = hesse.functional(module)"
    raise LeafError(asked, f"{type(leaf).__name__} at '{named[0][0] or 'the argument'}'", remedy)


def refuse_leaves(variables: Variables, asked: str) -> None:
    """Refuse leaves of integers or booleans.

    Raises:
        LeafError: naming the first.
    """
    for name, leaf in zip(variables.names(), variables.tensors(), strict=True):
        if not (leaf.dtype.is_floating_point or leaf.dtype.is_complex):
            remedy = "convert it to a floating-point dtype, or close over it (lambda p: f(p, constant))"
            raise LeafError(asked, f"{leaf.dtype} at '{name}'", remedy)


def refuse_devices(variables: Variables, error: RuntimeError, asked: str) -> None:
    """Say in words of hesse that a function failed since its parameters are on several devices.

    Raises:
        DeviceError: saying which is where.
    """
    if "device" in str(error) and len({t.device for t in variables.tensors()}) > 1:
        places = ", ".join(f"'{n}' on {t.device}" for n, t in zip(variables.names(), variables.tensors(), strict=True))
        raise DeviceError(asked, places, "move all leaves to one device") from error


def refuse_changed(variables: Variables, inputs: Sequence[Tensor], versions: Sequence[int], asked: str) -> None:
    """Refuse a function that changed one of its parameters in place.

    Raises:
        StructureError: naming the parameter.
    """
    for name, leaf, version in zip(variables.names(), inputs, versions, strict=True):
        if leaf._version != version:
            raise StructureError(asked, f"the function changed '{name}' in place", "let it work on a copy: x.clone()")


def survey(node: Tree) -> int:
    """What is in a tree beside plain tensors and static leaves, in one walk.

    Returns:
        The sum of `LINKED` (a tensor requires grad) and `OTHERS` (Python numbers, containers other than dict, list and tuple).
    """
    kind = type(node)
    if kind is dict:
        node = node.values()
    elif kind is not list and kind is not tuple:
        if isinstance(node, Tensor):
            return LINKED if node.requires_grad else 0
        if kind in _STATIC:
            return 0
        linked = kind not in _NUMBERS and any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree.leaves(node))
        return OTHERS | LINKED if linked else OTHERS
    if _TENSORS.issuperset(map(type, node)):
        return LINKED if True in map(_requires_grad, node) else 0
    found = 0
    for child in node:
        found |= (LINKED if child.requires_grad else 0) if type(child) is Tensor else survey(child)
    return found


def requires_grad(node: Tree) -> bool:
    """Whether a tensor in a tree requires grad."""
    return bool(survey(node) & LINKED)
