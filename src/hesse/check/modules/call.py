"""The inputs of one call of a module: which of them move, by name, and how the call is put together again."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from hesse.check.functions.stored import Stored, stored
from hesse.check.functions.subject import is_continuous
from hesse.core import tree


class Call:
    """Positional and keyword inputs, as detached copies; a tensor that stands in several places is one input.

    A sparse tensor moves where it stores values, and nowhere else: its values are what is differentiated.

    Args:
        args, named: of the call; trees with tensors, Python numbers and anything else.

    Attributes:
        values: name -> floating-point or complex tensor with elements; "inputs.0", "inputs.mask", "inputs.0.state", ...
        dense: name -> every dense tensor, moving or not.
        held: names of inputs that move nowhere, since the module is not differentiable in them; filled by others.
        given: name -> copy of a dense tensor, as it was before any run.
    """

    def __init__(self, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        leaves, self._structure = tree.flatten((args, named))
        paths = [path.partition(".")[2] for path, _ in tree.named_leaves((args, named))]
        first: dict[int, str] = {}
        self._names = [first.setdefault(id(leaf), f"inputs.{path}") for path, leaf in zip(paths, leaves, strict=True)]
        self._leaves: dict[str, Any] = {}
        self._sparse: dict[str, Stored] = {}
        self.values: dict[str, Tensor] = {}
        self.dense: dict[str, Tensor] = {}
        self.held: set[str] = set()
        self.given: dict[str, Tensor] = {}
        for name, leaf in zip(self._names, leaves, strict=True):
            if name not in self._leaves:
                self._leaves[name] = self._taken(name, leaf)
        self.given = {name: t.clone() for name, t in self.dense.items()}

    def _taken(self, name: str, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        sparse = stored(leaf.detach().clone())
        if sparse is not None:
            self._sparse[name] = sparse
            own = sparse.values.clone()
        elif leaf.layout is torch.strided:
            own = self.dense[name] = leaf.detach().clone(memory_format=torch.contiguous_format)
        else:
            return leaf.detach()
        if is_continuous(own) and own.numel():
            self.values[name] = own
        return own

    @property
    def moving(self) -> dict[str, Tensor]:
        """Fresh copies of the inputs that move."""
        return {name: value.clone() for name, value in self.values.items() if name not in self.held}

    @property
    def whole(self) -> dict[str, Tensor]:
        """As `moving`, with sparse tensors as they are."""
        return {name: self._sparse[name].tensor(t) if name in self._sparse else t for name, t in self.moving.items()}

    def build(self, given: Mapping[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and keyword inputs, with these tensors in place of those of the same names."""
        made: dict[str, Any] = {}
        for name, leaf in self._leaves.items():
            value = given.get(name, leaf)
            pattern = self._sparse.get(name)
            made[name] = value if pattern is None or value.layout is not torch.strided else pattern.tensor(value)
        return self._structure.unflatten([made[name] for name in self._names])

    def constants(self) -> Iterator[tuple[str, Tensor]]:
        """Dense tensors that do not move."""
        return ((name, t) for name, t in self.dense.items() if name not in self.values or name in self.held)

    def changed(self, given: Mapping[str, Tensor]) -> Call:
        """The same call with other tensors of the names in `dense` or `values`."""
        other = copy.copy(self)
        other._leaves = {**self._leaves, **given}
        other.dense = {name: given.get(name, t) for name, t in self.dense.items()}
        other.values = {name: given.get(name, t) for name, t in self.values.items()}
        other.given = {name: given[name].clone() if name in given else t for name, t in self.given.items()}
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Call:
        """Itself: copies of modules share their call, which nothing changes."""
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Every dense tensor and the values of every sparse one, moving or not, by name."""
        return {name: t for name, t in self._leaves.items() if isinstance(t, Tensor) and t.layout is torch.strided}
