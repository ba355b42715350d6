"""Where differences are taken: in float64 if the function gives the same values there, else in its own type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.recording import node_outputs, nodes
from hesse.check.differences import EPSILON
from hesse.check.functions.case import first_line, tied
from hesse.check.functions.subject import BudgetSpent, Graph, Leaves, Subject
from hesse.core.random import make_generator
from hesse.core.tree import Tree

_SAME = 0.3  # a run in float64 has to give the same values, to the square root of the own rounding times this
_UNITS = 16.0  # units in the last place of the own type that a backward pass in float64 may be off, for its constants
_MOST = 0.03
_ATOMIC = 8.0  # units in the last place, relative to the largest, that another order of sums costs two runs of one function
_MOVEMENTS = 8.0  # or to so many times what another rounding of the point changes


@dataclass(frozen=True, eq=False)
class Chosen:
    """The function as it is differentiated.

    Attributes:
        subject: in float64, or in the own type.
        graph: its run at the point.
        epsilon: relative unit of rounding of the shortest type on the way.
        constants: relative error that constants of a short type cause in a backward pass that computes with them.
        notes: why it is not in float64.
        random: two values, where two calls gave two.
    """

    subject: Subject
    graph: Graph
    epsilon: float
    constants: float = 0.0
    notes: tuple[str, ...] = ()
    random: tuple[float, ...] = ()


def choose(f: Callable[[Any], Any], x: Tree, own: Subject, graph: Graph) -> Chosen:
    """The function in float64 where it runs there, else as it is.

    Args:
        f, x: the function and its point.
        own: the same in its own type.
        graph: its run at the point.

    Returns:
        What to differentiate.

    Cost: 1 evaluation; up to 4 where there is no equal run in float64.
    """
    again = own.record(own.leaves)
    if any(a.shape != b.shape for a, b in zip(graph.outputs, again.outputs, strict=True)):
        return Chosen(own, graph, EPSILON, random=(float("nan"), float("nan")))
    for a, b in zip(graph.outputs, again.outputs, strict=True):
        if not _distance(a, b) <= _ATOMIC * torch.finfo(a.dtype).eps * _size(b):
            place = (a - b).abs().argmax()
            return Chosen(own, graph, EPSILON, random=(a.reshape(-1)[place].item(), b.reshape(-1)[place].item()))
    if all(t.dtype in (torch.float64, torch.complex128) for t in (*own.leaves, *graph.outputs)):
        return Chosen(own, graph, coarsest(graph))
    reason, epsilon = "", coarsest(graph)
    dtypes = {leaf.dtype for leaf in own.leaves}
    draws_in = dtypes.pop() if own.draws and len(dtypes) == 1 else None
    for promote in (False, True):
        try:
            exact = Subject(f, x, torch.float64, promote=promote, draws_in=draws_in, budget=own.budget)
            shadow = exact.record(exact.leaves)
            if not _pulls(shadow) and _pulls(graph):
                raise TypeError("the backward pass in float64 meets another type")
        except BudgetSpent:
            raise
        except Exception as error:
            reason = reason or f" ({first_line(error)})"
            continue
        if _is_same(own, graph.outputs, shadow.outputs, epsilon):
            return Chosen(exact, shadow, max(EPSILON, coarsest(shadow)), min(_UNITS * epsilon, _MOST))
    return Chosen(
        own, graph, epsilon, notes=(f"no equal run in float64{reason}: differences in the own dtype, with its error bars",)
    )


def _pulls(graph: Graph) -> bool:
    """Whether the backward pass runs."""
    try:
        graph.pull([torch.ones_like(y) for y in graph.outputs])
    except (RuntimeError, TypeError):
        return False
    return True


def _is_same(own: Subject, outputs: Leaves, shadow: Leaves, epsilon: float) -> bool:
    """Whether two runs in different types gave the same values."""
    if len(outputs) != len(shadow) or any(a.shape != b.shape for a, b in zip(outputs, shadow, strict=True)):
        return False
    if all(_distance(a, b) <= _SAME * epsilon**0.5 * _size(b) for a, b in zip(outputs, shadow, strict=True)):
        return True
    generator = make_generator()
    moved = own.record([x + 2 * torch.finfo(x.dtype).eps * tied(x, generator) for x in own.leaves]).outputs
    return all(
        _distance(a, b) <= _MOVEMENTS * _distance(a, m.to(b.dtype)) for a, b, m in zip(outputs, shadow, moved, strict=True)
    )


def _distance(a: Tensor, b: Tensor) -> float:
    return (a.detach().to(b.dtype) - b.detach()).abs().max().item() if a.numel() else 0.0


def _size(b: Tensor) -> float:
    return max(b.detach().abs().max().item(), 1e-30) if b.numel() else 0.0


def coarsest(graph: Graph) -> float:
    """Relative unit of rounding of the shortest type on the way from the leaves to the outputs, casts inside included."""
    found = {meta.dtype for node in _between(graph.own, graph.outputs) for meta in node_outputs(node)}
    dtypes = {*found, *(y.dtype for y in graph.outputs)}
    return max((torch.finfo(d).eps for d in dtypes if d.is_floating_point or d.is_complex), default=EPSILON)


def _between(leaves: Leaves, outputs: Leaves) -> list[Any]:
    """The nodes of a graph that lie on a path to one of the leaves."""
    order = list(nodes([y.grad_fn for y in outputs if y.grad_fn is not None]))
    own = {id(leaf) for leaf in leaves}
    reaching = {node for node in order if hasattr(node, "variable") and id(node.variable) in own}
    for node in reversed(order):
        if any(parent in reaching for parent, _ in node.next_functions):
            reaching.add(node)
    known = -1
    while known < len(reaching):
        known = len(reaching)
        reaching |= {node for node in reversed(order) if any(parent in reaching for parent, _ in node.next_functions)}
    return [node for node in order if node in reaching]
