"""Memory for what a replay computes on the way: made once, shared by all calls, re-used within a call."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, fx

from hesse.autodiff.compiled.bindings import out_variant
from hesse.autodiff.compiled.rewrite import is_pure
from hesse.autodiff.compiled.trace import Node, Trace, getitem


class Buffers:
    """Which nodes of a trace write into kept memory.

    A node does if its operation can write into a given tensor and its memory is never written to otherwise, shared with
    an input or handed out. Two nodes share a buffer where the first one's last use comes before the second. Views of
    buffers are made once, with them.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        handed = {trace.aliases.group(n) for n in trace.results} | {trace.aliases.group(r.node) for r in trace.reads
                                                                    if r.kind == "shape"}  # fmt: skip
        self._name: dict[Node, str] = {}
        self._views: list[Node] = []
        self._kinds: list[tuple[Any, ...]] = []
        ends = self._ends()
        free: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        held: dict[int, int] = {}
        static = {n for n in trace.graph.nodes if n.op == "get_attr"}
        for node in trace.graph.nodes:
            group = trace.aliases.group(node)
            if node.op == "call_function" and group is not None and is_pure(trace, node) and group not in handed:
                if self._is_static_view(node, static):
                    static.add(node)
                    self._views.append(node)
                    self._name[node] = f"v{len(self._views) - 1}"
                elif self._can_keep(node, group):
                    kind = (node.meta["shape"], node.meta["stride"], node.meta["dtype"], node.meta["device"])
                    if not free[kind]:
                        self._kinds.append(kind)
                        free[kind].append(len(self._kinds) - 1)
                    held[group] = free[kind].pop()
                    self._name[node] = f"b{held[group]}"
                    static.add(node)
            for done in ends.get(node, ()):
                if done in held:
                    index = held[done]
                    free[self._kinds[index]].append(index)

    @property
    def count(self) -> int:
        """Number of buffers and views of them."""
        return len(self._kinds) + len(self._views)

    def names(self) -> list[str]:
        """The names of all buffers, then of all views."""
        return [f"b{i}" for i in range(len(self._kinds))] + [f"v{i}" for i in range(len(self._views))]

    def name_of(self, node: Node) -> str | None:
        """The buffer or view that holds a node's value."""
        return self._name.get(node)

    def is_view(self, node: Node) -> bool:
        """Whether a node is a view that is made once."""
        return self._name[node].startswith("v")

    def make(self) -> tuple[Tensor, ...]:
        """A new set."""
        with torch.no_grad():
            kept = [
                torch.empty_strided(shape, stride, dtype=dtype, device=device) for shape, stride, dtype, device in self._kinds
            ]
            values: dict[Node, Tensor] = {}

            def value_of(node: Node) -> Tensor:
                if node.op == "get_attr":
                    return self._trace.constants[str(node.target)]
                name = self._name[node]
                return kept[int(name[1:])] if name.startswith("b") else values[node]

            for view in self._views:
                args, kwargs = fx.map_arg((view.args, view.kwargs), value_of)
                values[view] = view.target(*args, **kwargs)
        return (*kept, *values.values())

    def _ends(self) -> dict[Node, set[int]]:
        last: dict[int, Node] = {}
        for node in self._trace.graph.nodes:
            for used in (node, *node.all_input_nodes):
                group = self._trace.aliases.group(used)
                if group is not None:
                    last[group] = node
        ends: dict[Node, set[int]] = defaultdict(set)
        for group, node in last.items():
            ends[node].add(group)
        return ends

    def _is_static_view(self, node: Node, static: set[Node]) -> bool:
        parents = node.all_input_nodes
        if node.target is getitem or len(parents) != 1 or parents[0] not in static or "outputs" in node.meta:
            return False
        return node.target.is_view and self._trace.aliases.group(node) == self._trace.aliases.group(parents[0])

    def _can_keep(self, node: Node, group: int | None) -> bool:
        if node.target is getitem or "outputs" in node.meta or node.meta["stride"] is None or out_variant(node.target) is None:
            return False
        if any(self._trace.aliases.group(parent) == group for parent in node.all_input_nodes):
            return False
        contiguous = torch.empty_strided(node.meta["shape"], node.meta["stride"], device="meta")
        return contiguous.is_contiguous() or torch._debug_has_internal_overlap(contiguous) == 0
