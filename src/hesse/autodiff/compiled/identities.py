"""Operations that change nothing, or that another one can take over."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from hesse.autodiff.compiled.fold import constant_of
from hesse.autodiff.compiled.rewrite import become, calls, is_private
from hesse.autodiff.compiled.trace import Node, Trace

_aten = torch.ops.aten
_SIGNS = {_aten.add.Tensor: 1, _aten.sub.Tensor: -1}


def unchanged(node: Node) -> Any:
    """The argument that an operation returns as it is, if it does (a power of one, a product with the number one); or None."""
    power = node.target is _aten.pow.Tensor_Scalar
    if not power and node.target not in (_aten.mul.Tensor, _aten.mul.Scalar):
        return None
    source, factor = node.args[:2]
    if type(factor) not in (int, float) or factor != 1 or not isinstance(source, fx.Node):
        return None
    return source if all(node.meta[key] == source.meta.get(key) for key in ("shape", "dtype", "device", "stride")) else None


def take_over_sign(trace: Trace, node: Node) -> None:
    """A sum with a negated term is a difference."""
    for term, other in (node.args[1::-1], node.args[:2]):
        if calls(term, _aten.neg.default) and is_private(trace, term) and isinstance(other, fx.Node) and not node.kwargs:
            become(node, _aten.sub.Tensor, (other, term.args[0]))
            trace.graph.erase_node(term)
            return


def gather_constants(trace: Trace, node: Node) -> None:
    """A term and two constants, one after the other added or subtracted, are a term and one constant."""
    outer = _affine(trace, node)
    if outer is None or not is_private(trace, outer[1]) or outer[1].op != "call_function":
        return
    sign, source, added = outer
    inner = _affine(trace, source)
    if inner is None or any(source.meta[key] != node.meta[key] for key in ("shape", "dtype")):
        return
    constant = added + sign * inner[2]
    if constant.dtype != node.meta["dtype"] or tuple(constant.shape) != node.meta["shape"]:
        return
    name = trace.new_constant("folded")
    trace.constants[name] = constant
    with trace.graph.inserting_before(node):
        place = trace.graph.get_attr(name)
    place.meta = {**node.meta, "stride": tuple(constant.stride())}
    trace.aliases.fresh(place)
    if sign * inner[0] > 0:
        become(node, _aten.add.Tensor, (inner[1], place))
    else:
        become(node, _aten.sub.Tensor, (place, inner[1]))
    trace.graph.erase_node(source)


def _affine(trace: Trace, node: Node) -> tuple[int, Node, Tensor] | None:
    """Sign, term and constant of ``constant ± term``, where a node is that."""
    if node.op != "call_function" or node.target not in _SIGNS or node.kwargs:
        return None
    sign = _SIGNS[node.target]
    first, second = node.args[:2]
    if not (isinstance(first, fx.Node) and isinstance(second, fx.Node)):
        return None
    left, right = constant_of(trace, first), constant_of(trace, second)
    if (left is None) == (right is None):
        return None
    return (sign, second, left) if left is not None else (1, first, sign * right) if right is not None else None
