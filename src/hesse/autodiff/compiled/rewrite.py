"""Steps that every change of a recorded graph is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from hesse.autodiff.compiled.trace import Node, Trace, getitem


def is_pure(trace: Trace, node: Node) -> bool:
    """Whether a node's value is settled by its arguments, and its memory is never written to."""
    if node.op != "call_function" or node in trace.aliases.writers:
        return False
    if node.target is not getitem and (
        torch.Tag.nondeterministic_seeded in node.target.tags or node.target.namespace != "aten" or _is_empty(node)
    ):
        return False
    return all(trace.aliases.group(n) not in trace.aliases.written for n in (node, *node.all_input_nodes))


def _is_empty(node: Node) -> bool:
    return "empty" in node.target.__name__


def replace(trace: Trace, node: Node, other: Any) -> None:
    """Let everything that uses a node use another one."""
    trace.aliases.merge(node, other)
    node.replace_all_uses_with(other)
    _forward(trace, node, other)
    trace.graph.erase_node(node)


def _forward(trace: Trace, node: Node, other: Node) -> None:
    """Let reads and results follow a node that was replaced."""
    trace.results = [other if n is node else n for n in trace.results]
    trace.reads = [type(r)(other, r.kind, r.expected, r.source) if r.node is node else r for r in trace.reads]


def calls(node: Any, target: Any) -> bool:
    """Whether an argument is the result of an operation."""
    return isinstance(node, fx.Node) and node.target is target


def is_private(trace: Trace, node: Node) -> bool:
    """Whether a node has one use, which may absorb it."""
    if len(node.users) != 1 or not is_pure(trace, node):
        return False
    return all(read.node is not node for read in trace.reads) and node not in trace.results


def become(node: Node, target: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Let a node, whose value stays the same, be computed in another way."""
    node.target, node.args, node.kwargs = target, args, {}
