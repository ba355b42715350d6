"""Cotangents in other strides for operations inside a graph whose backward pass was written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from hesse.autodiff.recording import nodes
from hesse.check.functions.case import Case
from hesse.check.functions.subject import EachTimeAnew, Leaves
from hesse.check.layouts import expanded, layouts, slices

_MOST = 64  # operations that are looked at
_Relaid = Callable[[Tensor], Tensor]


def inner_strides(case: Case) -> None:
    """Give every `autograd.Function` in the graph its cotangents in other strides.

    What stands behind an operation decides how its cotangent lies in memory: a slice where the output is a part of a
    concatenation, repeated where it is summed. The cotangents of the outputs reach the last operations only.
    """
    graph = case.home.graph
    if isinstance(graph, EachTimeAnew):
        return
    own = list(_by_hand(graph.outputs))
    if not own:
        return
    seen: list[Tensor] = []
    with _relaid(own, lambda g: (seen.append(g), g)[1]):
        graph.pull(case.home.cotangents)
    kinds = dict.fromkeys(kind for g in seen for kind, _ in chain(layouts(g), slices(g)))
    for kind in kinds:
        case.agree(f"{kind} cotangent inside", lambda kind=kind: (_pulled(case, own, _as(kind)), case.home.gradient),
                   words=f"only when the cotangent of an operation inside is {kind}")  # fmt: skip
    for number in range(max((len(expanded(g)) for g in seen), default=0)):

        def both(number: int = number) -> tuple[Leaves, Leaves]:
            return _pulled(case, own, _repeated(number)), _pulled(case, own, _repeated(number, packed=True))

        case.agree("expanded cotangent inside", both, words="only when the cotangent of an operation inside is expanded")


def _by_hand(outputs: Leaves) -> Iterator[Any]:
    """Operations with a backward pass written by hand, but for those that compute outputs, which are strided elsewhere."""
    last = [y.grad_fn for y in outputs if y.grad_fn is not None]
    found = (node for node in nodes(last) if isinstance(node, BackwardCFunction) or type(node).__name__ == "CppFunction")
    inside = (node for node in found if not any(node is one for one in last))
    return (node for node, _ in zip(inside, range(_MOST), strict=False))


def _pulled(case: Case, own: Sequence[Any], change: _Relaid) -> Leaves:
    with _relaid(own, change):
        return case.home.graph.pull(case.home.cotangents)


@contextmanager
def _relaid(own: Sequence[Any], change: _Relaid) -> Iterator[None]:
    """Change the cotangents of operations inside."""
    handles = [node.register_prehook(lambda gs: tuple(None if g is None else change(g) for g in gs)) for node in own]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _as(kind: str) -> _Relaid:
    return lambda g: next((other for name, other in chain(layouts(g), slices(g)) if name == kind), g)


def _repeated(number: int, *, packed: bool = False) -> _Relaid:
    def change(g: Tensor) -> Tensor:
        found = expanded(g)
        other = found[min(number, len(found) - 1)] if found else g
        return other.contiguous() if packed else other

    return change
