"""Sums of padded pieces that lie side by side are concatenations: what reverse mode leaves of slices, forward mode of stack."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch
from torch import fx

from hesse.autodiff.compiled.rewrite import become, calls, is_private
from hesse.autodiff.compiled.trace import Node, Trace

_aten = torch.ops.aten
_MOST_TERMS = 64


class _Piece(NamedTuple):
    """A term of a sum that is zero outside of a range of one axis."""

    start: int
    stop: int
    axis: int
    node: Node
    is_slice: bool


def join_pieces(trace: Trace, node: Node) -> bool:
    """Rewrite a sum, some of whose terms are padded pieces that fill an axis without overlap; whether it was one."""
    terms: list[Node] = []
    inner: list[Node] = []
    _collect(trace, node, terms, inner)
    pieces = sorted((p for p in map(_piece, terms) if p is not None and is_private(trace, p.node)), key=lambda p: p[:2])
    chosen = _covering(pieces, node.meta["shape"])
    if chosen is None:
        return False
    others = [term for term in terms if all(term is not p.node for p in chosen)]
    with trace.graph.inserting_before(node):
        sources = [p.node.args[0] if p.is_slice else _lifted(trace, p) for p in chosen]
        axis = chosen[0].axis
        if not others:
            become(node, _aten.cat.default, (sources, axis))
        else:
            made = trace.graph.call_function(_aten.cat.default, (sources, axis))
            made.meta = {**node.meta, "stride": tuple(torch.empty(node.meta["shape"], device="meta").stride())}
            trace.aliases.fresh(made)
            for term in others[:-1]:
                total = trace.graph.call_function(_aten.add.Tensor, (made, term))
                total.meta = dict(made.meta)
                trace.aliases.fresh(total)
                made = total
            become(node, _aten.add.Tensor, (made, others[-1]))
    for old in [*inner, *(p.node for p in chosen)]:
        trace.graph.erase_node(old)
    return True


def _collect(trace: Trace, node: Node, terms: list[Node], inner: list[Node]) -> None:
    """The terms of a nested sum of tensors of one shape, and the sums within it, outermost first."""
    pending = [node]
    while pending:
        total = pending.pop()
        if total is not node:
            inner.append(total)
        for term in total.args[:2]:
            if not isinstance(term, fx.Node) or term.meta.get("shape") != node.meta["shape"]:
                terms.append(term)  # a number, or something that is expanded: not a piece
            elif calls(term, _aten.add.Tensor) and not term.kwargs and is_private(trace, term) and len(terms) < _MOST_TERMS:
                pending.append(term)
            else:
                terms.append(term)


def _piece(term: Any) -> _Piece | None:
    if calls(term, _aten.slice_backward.default):
        _, shape, axis, start, stop, step = term.args
        axis, size = axis % len(shape), shape[axis]
        start, stop = (_within(bound, size) for bound in (start, stop))
        return _Piece(start, stop, axis, term, True) if step == 1 else None
    if calls(term, _aten.select_backward.default):
        _, shape, axis, index = term.args
        index %= shape[axis]
        return _Piece(index, index + 1, axis % len(shape), term, False)
    return None


def _within(bound: int | None, size: int) -> int:
    bound = sys.maxsize if bound is None else bound
    return max(0, min(size, bound + size if bound < 0 else bound))


def _covering(pieces: list[_Piece], shape: Any) -> list[_Piece] | None:
    """Pieces that fill one axis, one after the other."""
    for axis in {p.axis for p in pieces}:
        reached, chosen = 0, []
        for piece in pieces:
            if piece.axis == axis and piece.start == reached and piece.stop > reached:
                chosen.append(piece)
                reached = piece.stop
        if len(chosen) > 1 and reached == shape[axis]:
            return chosen
    return None


def _lifted(trace: Trace, piece: _Piece) -> Node:
    """The source of a selected piece, with the axis that selecting took away."""
    source = piece.node.args[0]
    made = trace.graph.call_function(_aten.unsqueeze.default, (source, piece.axis))
    shape, stride = source.meta["shape"], source.meta["stride"]
    view = torch.empty_strided(shape, stride, device="meta").unsqueeze(piece.axis)
    made.meta = {**source.meta, "shape": tuple(view.shape), "stride": tuple(view.stride())}
    trace.aliases.fresh(made)
    trace.aliases.merge(made, source)
    return made
