"""Forms handed over as the backward pass leaves a parameter's last use, for one cotangent of the output after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.capture import edges_of, towards, use_meeting
from hesse.autodiff.deliver import Collector
from hesse.autodiff.forward import Forward
from hesse.autodiff.layout import Walk
from hesse.autodiff.plan import Plan, PlannedMeeting
from hesse.autodiff.recording import node_bytes
from hesse.core.batching import slices
from hesse.rules.forms import Form

Take = Callable[[int, str, Sequence[Form]], None]

_SMALL_BYTES = 2**22  # graphs up to this size are bound by overhead: their roots share a batched pass (MLP, 10 roots: 12 -> 7)
_STACKED_BYTES = 2**26


def stream(forward: Forward, walk: Walk, plan: Plan, cotangents: Sequence[Tensor], take: Take) -> dict[str, str]:
    """Like `capture` for every cotangent, but hands over the forms of a parameter as soon as all of its uses are known.

    Args:
        forward, walk, plan: as for `capture`.
        cotangents: of the output; one after the other is asked for.
        take: called once for every root and parameter that is used, with the root's number, the name and the forms, which are
            not kept.

    Returns:
        The paths of the parameters.

    Cost: a backward pass without weight gradients a root; small graphs share passes.
    """
    paths: dict[str, str] = {}
    size = sum(node_bytes(node) for node in walk.nodes) if len(cotangents) > 1 else _SMALL_BYTES
    if size < _SMALL_BYTES:
        try:
            return _stacked(forward, walk, plan, cotangents, take, max(_STACKED_BYTES // max(size, 1), 1))
        except _NoBatchedBackward:
            pass
    passes = _Passes(forward, walk, plan)
    for root in range(len(cotangents)):
        found = passes.run(cotangents[root], lambda name, forms, root=root: take(root, name, forms))
        paths = paths or found
    return paths


class _NoBatchedBackward(Exception):
    """The backward of some op cannot be batched."""


def _stacked(
    forward: Forward, walk: Walk, plan: Plan, cotangents: Sequence[Tensor], take: Take, at_once: int
) -> dict[str, str]:
    """All roots in a few batched passes."""
    edges = edges_of(plan.meetings)
    paths: dict[str, str] = {}
    for part in slices(len(cotangents), at_once):
        block = cotangents[part]
        block = block if isinstance(block, Tensor) else torch.stack([cotangents[root] for root in range(part.start, part.stop)])
        try:
            found = dict(zip(edges, towards(forward, walk, edges, block, batched=True), strict=True)) if edges else {}
        except RuntimeError as error:
            if part.start:
                raise
            raise _NoBatchedBackward from error
        for k in range(len(block)):
            collector, notes = Collector({name: [] for name in forward.leaves}), {}
            with torch.no_grad():
                for m in plan.meetings:
                    grads = [found[m.node, slot] for slot in m.outputs]
                    use_meeting(forward, walk, m, [None if g is None else g[k] for g in grads], notes, collector)
            for name, forms in collector.forms.items():
                if forms:
                    take(part.start + k, name, forms)
            paths = paths or collector.finish().paths
    return paths


class _Passes:
    """Backward passes with a hook before every meeting that is passed on the way to others."""

    def __init__(self, forward: Forward, walk: Walk, plan: Plan) -> None:
        self.forward, self.walk = forward, walk
        self.uses: dict[str, int] = {}
        self.by_node: dict[int, list[PlannedMeeting]] = {}
        for m in plan.meetings:
            self.by_node.setdefault(m.node, []).append(m)
            for name in self._names(m):
                self.uses[name] = self.uses.get(name, 0) + 1
        self.inner = _before_others(walk, set(self.by_node))
        self.last = edges_of([m for m in plan.meetings if m.node not in self.inner])

    def _names(self, m: PlannedMeeting) -> Iterator[str]:
        return (self.walk.leaves[self.walk.nodes[i]] for i in m.params)

    def run(self, cotangent: Tensor, take: Callable[[str, Sequence[Form]], None]) -> dict[str, str]:
        """One pass; returns the paths."""
        forward, walk = self.forward, self.walk
        collector = Collector({name: [] for name in forward.leaves})
        open_uses = dict(self.uses)

        def visit(i: int, grads: Sequence[Tensor | None]) -> None:
            notes: dict[Any, Any] = {}
            with torch.no_grad():
                for m in self.by_node[i]:
                    use_meeting(forward, walk, m, [grads[slot] for slot in m.outputs], notes, collector)
                    for name in self._names(m):
                        open_uses[name] -= 1
                        if not open_uses[name] and collector.forms[name]:
                            take(name, collector.forms[name])
                            collector.forms[name] = []

        hooks = [walk.nodes[i].register_prehook(lambda grads, i=i: visit(i, grads)) for i in self.inner]
        try:
            found = dict(zip(self.last, towards(forward, walk, self.last, cotangent), strict=True)) if self.last else {}
        finally:
            for hook in hooks:
                hook.remove()
        for i in self.by_node:
            if i not in self.inner:
                width = 1 + max(slot for m in self.by_node[i] for slot in m.outputs)
                visit(i, [found.pop((i, slot), None) for slot in range(width)])
        for name, forms in collector.forms.items():  # of parameters with a use that no cotangent reached
            if forms:
                take(name, forms)
        return collector.finish().paths


def _before_others(walk: Walk, meetings: set[int]) -> set[int]:
    """The meetings that the backward pass goes through on its way to others (a hook sees their cotangents in passing)."""
    reaches: dict[int, bool] = {}
    pending = sorted(meetings)
    while pending:
        i = pending[-1]
        parents = [edge[0] for edge in walk.edges[i] if edge is not None]
        unknown = [j for j in parents if j not in reaches]
        if unknown:
            pending.extend(unknown)
            continue
        pending.pop()
        reaches[i] = any(j in meetings or reaches[j] for j in parents)
    return {i for i in meetings if reaches[i]}
