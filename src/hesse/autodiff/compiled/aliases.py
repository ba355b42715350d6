"""Which nodes of a recorded graph share memory, and which operations write to it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx

_aten = torch.ops.aten
_RUNNING_STATISTICS = {
    _aten.native_batch_norm.default: (3, 4, 5),
    _aten.cudnn_batch_norm.default: (3, 4, 5),
    _aten.miopen_batch_norm.default: (3, 4, 5),
}
"""Operations whose schema hides that they write: positions of mean and variance, and of the flag that switches it on."""


class Aliases:
    """Memory by node, in groups; a group is the memory that one operation or input brought in.

    Attributes:
        written: groups that some operation writes to.
        external: groups of inputs and closed-over tensors.
        writers: nodes that write, with the groups.
    """

    def __init__(self) -> None:
        self._group: dict[fx.Node, int] = {}
        self._cells: dict[int, int] = {}  # storages of inputs, which outlive the run
        self._storage: dict[fx.Node, int] = {}
        self._parent: list[int] = []  # groups that were merged point to another one
        self.written: set[int] = set()
        self.external: set[int] = set()
        self.writers: dict[fx.Node, set[int]] = {}

    def group(self, node: fx.Node) -> int | None:
        """The group of a node, None where it gave no tensor."""
        group = self._group.get(node)
        return None if group is None else self._root(group)

    def _root(self, group: int) -> int:
        while self._parent[group] != group:
            group = self._parent[group]
        return group

    def input(self, node: fx.Node, tensor: Tensor) -> None:
        """A tensor from outside."""
        cell = _storage(tensor)
        if cell not in self._cells:
            self._cells[cell] = self._new()
        self._group[node], self._storage[node] = self._cells[cell], cell
        self.external.add(self._cells[cell])

    def operation(self, node: fx.Node, written: Sequence[fx.Node]) -> None:
        """An operation that writes to the tensors of some nodes."""
        groups = {self._root(self._group[w]) for w in written}
        if groups:
            self.writers[node] = groups
            self.written |= groups

    def output(self, node: fx.Node, tensor: Tensor, inputs: Sequence[fx.Node]) -> None:
        """A tensor that an operation gave: a view of one of its inputs, or new memory."""
        cell = _storage(tensor)
        self._storage[node] = cell
        for parent in inputs:
            if self._storage.get(parent) == cell:
                self._group[node] = self._group[parent]
                return
        self._group[node] = self._new()

    def merge(self, node: fx.Node, source: fx.Node) -> None:
        """Let whatever shares memory with a node share the memory of another one."""
        old, new = self.group(node), self.group(source)
        if old is not None and new is not None:
            self._parent[old] = new

    def fresh(self, node: fx.Node) -> None:
        """A node made later, with memory of its own."""
        self._group[node] = self._new()

    def _new(self) -> int:
        self._parent.append(len(self._parent))
        return len(self._parent) - 1


def _storage(tensor: Tensor) -> int:
    if tensor.layout != torch.strided:
        return -id(tensor)
    return tensor.untyped_storage()._cdata


def writes_of(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that a call of an operation writes to."""
    if func in _RUNNING_STATISTICS:
        mean, variance, flag = _RUNNING_STATISTICS[func]
        return [args[i] for i in (mean, variance) if args[flag] and isinstance(args[i], Tensor)]
    written: list[Tensor] = []
    for index, name in _written_arguments(func):
        value = args[index] if index < len(args) else kwargs.get(name)
        written += [t for t in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(t, Tensor)]
    return written


@cache
def _written_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    found = enumerate(func._schema.arguments)
    return tuple((i, a.name) for i, a in found if a.alias_info is not None and a.alias_info.is_write)
