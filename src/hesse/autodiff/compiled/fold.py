"""What a trace computes from constants alone is computed once, when it is optimized."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from hesse.autodiff.compiled.rewrite import replace
from hesse.autodiff.compiled.trace import Node, Trace

_aten = torch.ops.aten
_FILLED = {
    _aten.ones_like.default, _aten.zeros_like.default, _aten.full_like.default, _aten.new_zeros.default, _aten.new_ones.default,
    _aten.new_full.default, _aten.zeros.default, _aten.ones.default, _aten.full.default, _aten.scalar_tensor.default,
    _aten.arange.default, _aten.arange.start, _aten.arange.start_step, _aten.eye.default, _aten.eye.m,
}  # fmt: skip
"""Operations whose result depends on shapes alone."""


class Folding:
    """Puts constants in the place of operations on constants.

    Args:
        trace: whose nodes are folded in their order.

    A constant may hold as much as `Trace.folding` says; where tensors are fixed, all of them together twice that. What a fold
    makes superfluous is given back at once, so a chain of operations leaves its last result.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._left = 2 * trace.folding if trace.fixed else math.inf

    def is_possible(self, node: Node) -> bool:
        """Whether a node, which is pure, depends on constants alone, and its value is small enough to be kept."""
        trace = self._trace
        if "outputs" in node.meta or node.meta["stride"] is None or any(read.node is node for read in trace.reads):
            return False
        size = _bytes(node)
        if size > trace.folding or size > self._left:
            return False
        if node.target in _FILLED or (trace.fixed and _is_one(node)):
            return True
        parents = node.all_input_nodes
        return bool(parents) and all(constant_of(trace, p) is not None for p in parents)

    def __call__(self, node: Node) -> None:
        """Compute a node's value, and let it be a constant."""
        trace = self._trace

        def value_of(n: Node) -> Tensor:
            kept = constant_of(trace, n)
            meta = n.meta
            return kept if kept is not None else torch.empty_strided(
                meta["shape"], meta["stride"], dtype=meta["dtype"], device=meta["device"])  # fmt: skip

        name = trace.new_constant("folded")
        arguments, parents = fx.map_arg((node.args, node.kwargs), value_of), node.all_input_nodes
        with torch.no_grad():
            trace.constants[name] = node.target(*arguments[0], **arguments[1])
        with trace.graph.inserting_before(node):
            constant = trace.graph.get_attr(name)
        constant.meta = dict(node.meta)
        self._left -= _bytes(node)
        trace.aliases.fresh(constant)
        replace(trace, node, constant)
        for parent in parents:
            self._give_back(parent)

    def _give_back(self, node: Node) -> None:
        trace = self._trace
        if node.op != "get_attr" or node.users or node in trace.results or any(read.node is node for read in trace.reads):
            return
        if str(node.target).startswith("folded"):
            self._left += _bytes(node)
        del trace.constants[str(node.target)]
        trace.graph.erase_node(node)


def constant_of(trace: Trace, node: Any) -> Tensor | None:
    """The value of a node that is a constant."""
    return trace.constants[str(node.target)] if isinstance(node, fx.Node) and node.op == "get_attr" else None


def is_all(trace: Trace, node: Any, number: int) -> bool:
    """Whether a node is a constant, all of whose elements are a number."""
    value = constant_of(trace, node)
    if value is None or not value.numel():
        return value is not None
    first = value[(0,) * value.ndim] if value.ndim else value
    return bool(first == number) and bool((value == number).all())


def _bytes(node: Node) -> int:
    held = zip(node.meta["shape"], node.meta["stride"] or node.meta["shape"], strict=True)
    count = node.meta["dtype"].itemsize
    for size, stride in held:
        count *= 1 if stride == 0 else size
    return count


def _is_one(node: Node) -> bool:
    """Whether a node is a zeroth power."""
    return node.target is _aten.pow.Tensor_Scalar and type(node.args[1]) in (int, float) and node.args[1] == 0
