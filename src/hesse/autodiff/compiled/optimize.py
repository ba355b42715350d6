"""Fewer operations for the same values: copies, constants, repetitions and dead code are removed from a trace.

Nodes whose memory is written to somewhere in the trace are left as they are: their order matters.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from hesse.autodiff.compiled.fold import Folding, is_all
from hesse.autodiff.compiled.fuse import fuse
from hesse.autodiff.compiled.identities import unchanged
from hesse.autodiff.compiled.rewrite import calls, is_pure, replace
from hesse.autodiff.compiled.trace import Node, Trace, getitem

_aten = torch.ops.aten
_SAME = {_aten.detach.default, _aten.alias.default, _aten.lift_fresh.default}
_RESHAPES = {_aten.view.default, _aten._unsafe_view.default, _aten.expand.default, _aten.reshape.default}


def optimize(trace: Trace) -> None:
    """Simplify the graph of a trace in place, then make it end in its reads and results."""
    fold = Folding(trace)
    for node in list(trace.graph.nodes):
        if node.op == "call_function":
            _simplify(trace, node, fold)
    _share(trace)
    fuse(trace)
    _share(trace)
    _separate_results(trace)
    trace.graph.output(tuple(read.node for read in trace.reads) + tuple(trace.results))
    _remove_dead(trace)
    trace.graph.lint()


def _separate_results(trace: Trace) -> None:
    """Copy each result that shares memory with an input, a constant or another result, or that overlaps itself."""
    taken = set(trace.aliases.external)
    taken |= {trace.aliases.group(n) for n in trace.graph.nodes if n.op == "get_attr"}
    for index, node in enumerate(trace.results):
        group = trace.aliases.group(node)
        stride, shape = node.meta["stride"], node.meta["shape"]
        overlaps = stride is not None and any(s == 0 and n > 1 for s, n in zip(stride, shape, strict=True))
        if group in taken or overlaps:
            copy = trace.graph.call_function(_aten.clone.default, (node,), {"memory_format": torch.contiguous_format})
            copy.meta = {
                **node.meta,
                "stride": tuple(torch.empty(shape, device="meta").stride()) if stride is not None else None,
            }
            trace.aliases.fresh(copy)
            trace.results[index] = copy
        else:
            taken.add(group)


def _simplify(trace: Trace, node: Node, fold: Folding) -> None:
    target = node.target
    if target is getitem or not is_pure(trace, node):
        if target in _SAME:
            replace(trace, node, node.args[0])
        return
    if (
        target in _SAME
        or (target is _aten.clone.default and _is_needless_copy(trace, node))
        or (target in _RESHAPES and _has_same_layout(node, node.args[0]))
    ):
        replace(trace, node, node.args[0])
    elif (same := unchanged(node)) is not None:
        replace(trace, node, same)
    elif target is _aten.t.default and calls(node.args[0], _aten.t.default):
        replace(trace, node, node.args[0].args[0])
    elif fold.is_possible(node):
        fold(node)
    elif target is _aten.mul.Tensor:
        for one, other in (node.args[:2], node.args[1::-1]):
            if isinstance(other, fx.Node) and _has_same_layout(node, other) and is_all(trace, one, 1):
                replace(trace, node, other)
                break


def _is_needless_copy(trace: Trace, node: Node) -> bool:
    return _has_same_layout(node, node.args[0])


def _has_same_layout(node: Node, other: Any) -> bool:
    return all(node.meta[key] == other.meta.get(key) for key in ("shape", "dtype", "device", "stride"))


def _share(trace: Trace) -> None:
    """Common sub-expressions are computed once."""
    seen: dict[Any, Node] = {}
    for node in list(trace.graph.nodes):
        if not is_pure(trace, node):
            continue
        try:
            key = (node.target, _frozen(node.args), _frozen(tuple(sorted(node.kwargs.items(), key=operator.itemgetter(0)))))
            first = seen.setdefault(key, node)
        except TypeError:  # an argument that cannot be hashed
            continue
        if first is not node:
            replace(trace, node, first)


def _frozen(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(v) for v in value)
    if isinstance(value, (bool, int, float, complex)):
        return type(value), repr(value)  # 1 is not True, 0.0 is not -0.0
    return value


def _remove_dead(trace: Trace) -> None:
    """Keep what leads to a read, a result, an effect outside, or a random number."""
    writers = trace.aliases.writers
    live: set[Node] = set()
    groups: set[int] = set(trace.aliases.external)
    pending: list[Node] = [n for n in trace.graph.nodes if n.op == "output" or _has_effect(n)]

    def visit() -> None:
        while pending:
            node = pending.pop()
            if node in live:
                continue
            live.add(node)
            group = trace.aliases.group(node)
            if group is not None:
                groups.add(group)
            pending.extend(node.all_input_nodes)

    visit()
    while missing := [w for w, written in writers.items() if w not in live and written & groups]:
        pending.extend(missing)
        visit()
    for node in reversed(list(trace.graph.nodes)):
        if node not in live and node.op != "placeholder":
            trace.graph.erase_node(node)
    for node in [w for w in writers if w not in live]:
        del writers[node]
    _forget_captured(trace)
    used = {str(node.target) for node in trace.graph.nodes if node.op == "get_attr"}
    trace.constants = {name: value for name, value in trace.constants.items() if name in used}


def _forget_captured(trace: Trace) -> None:
    """Closed-over tensors that nothing uses any more need no guard."""
    places = [n for n in trace.graph.nodes if n.op == "placeholder"][len(trace.inputs) :]
    trace.captured = [t for t, place in zip(trace.captured, places, strict=True) if place.users]
    for place in places:
        if not place.users:
            trace.graph.erase_node(place)


def _has_effect(node: Node) -> bool:
    if node.op != "call_function" or node.target is getitem:
        return False
    return torch.Tag.nondeterministic_seeded in node.target.tags or not node.target._schema.returns
