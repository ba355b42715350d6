"""Several operations in one, where PyTorch has one for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from hesse.autodiff.compiled.identities import gather_constants, take_over_sign
from hesse.autodiff.compiled.pieces import join_pieces
from hesse.autodiff.compiled.rewrite import become, calls, is_private, is_pure, replace
from hesse.autodiff.compiled.trace import Node, Trace, getitem

_aten = torch.ops.aten
_EXACT = {torch.float32, torch.float64, torch.complex64, torch.complex128}  # shorter ones round in between
_TENSOR_FORM = {
    _aten.mul.Scalar: _aten.mul.Tensor,
    _aten.add.Scalar: _aten.add.Tensor,
    _aten.sub.Scalar: _aten.sub.Tensor,
    _aten.div.Scalar: _aten.div.Tensor,
}


def fuse(trace: Trace) -> None:
    """Rewrite patterns that automatic differentiation leaves behind; every value stays the same up to rounding."""
    read = _ancestors([r.node for r in trace.reads])
    for node in list(trace.graph.nodes):
        if node.op != "call_function" or node.target is getitem or not is_pure(trace, node):
            continue
        if node.target in _TENSOR_FORM:
            node.target = _TENSOR_FORM[node.target]
        elif node.target is _aten.split.Tensor:
            _split(trace, node)
        elif node.target is _aten.view.default:
            _sum_without_axis(trace, node)
        elif node.target is _aten.sum.dim_IntList:
            _sum_of_one(trace, node)
        elif node.target in (_aten.add.Tensor, _aten.sub.Tensor) and not node.kwargs:
            _sum(trace, node, is_read=node in read)


def _sum(trace: Trace, node: Node, *, is_read: bool) -> None:
    """A sum or difference; one that Python reads stays the same to the last bit."""
    if node.target is _aten.add.Tensor:
        if join_pieces(trace, node):
            return
        take_over_sign(trace, node)
    if is_read:
        return
    if node.target is _aten.add.Tensor:
        _product_and_sum(trace, node)
    if trace.fixed:
        gather_constants(trace, node)


def _ancestors(nodes: list[Node]) -> set[Node]:
    seen: set[Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending.extend(node.all_input_nodes)
    return seen


def _split(trace: Trace, node: Node) -> None:
    """Pieces as slices, which can be made once for memory that is kept."""
    source, size, axis = node.args[0], node.args[1], node.args[2] if len(node.args) > 2 else 0
    for item in list(node.users):
        if item.target is not getitem:
            return
        start = item.args[1] * size
        become(item, _aten.slice.Tensor, (source, axis, start, start + size))


def _sum_without_axis(trace: Trace, node: Node) -> None:
    total = node.args[0]
    if not calls(total, _aten.sum.dim_IntList) or not is_private(trace, total) or total.kwargs:
        return
    axes, keeps = total.args[1], len(total.args) > 2 and total.args[2]
    shape = list(total.meta["shape"])
    if keeps is not True or len(axes) != 1:
        return
    del shape[axes[0]]
    if list(node.meta["shape"]) == shape:
        become(node, _aten.sum.dim_IntList, (total.args[0], axes))
        trace.graph.erase_node(total)
        _sum_of_one(trace, node)


def _sum_of_one(trace: Trace, node: Node) -> None:
    """A sum over an axis of length one is a view."""
    source, axes, keeps = *node.args[:2], len(node.args) > 2 and node.args[2]
    if node.kwargs or not isinstance(source, fx.Node) or not axes or any(source.meta["shape"][a] != 1 for a in axes):
        return
    if source.meta["dtype"] != node.meta["dtype"] or (not is_pure(trace, source) and source.op == "call_function"):
        return
    if keeps is True:
        replace(trace, node, source)
    elif len(axes) == 1:
        become(node, _aten.squeeze.dim, (source, axes[0]))
        trace.aliases.merge(node, source)
        stride = list(source.meta["stride"])
        del stride[axes[0]]
        node.meta["stride"] = tuple(stride)


def _product_and_sum(trace: Trace, node: Node) -> None:
    """A matrix product and the bias, or the sum of products, that it is added to."""
    for product, bias in (node.args[:2], node.args[1::-1]):
        if bias is product:
            return
        if calls(product, _aten.mm.default) and is_private(trace, product) and _is_bias(bias, node):
            become(node, _aten.addmm.default, (bias, *product.args))
            trace.graph.erase_node(product)
            return


def _is_bias(bias: Any, node: Node) -> bool:
    return (
        isinstance(bias, fx.Node)
        and bias.meta["dtype"] == node.meta["dtype"]
        and node.meta["dtype"] in _EXACT
        and len(node.meta["shape"]) == 2
        and bias.meta["shape"] in (node.meta["shape"], node.meta["shape"][1:])
    )
