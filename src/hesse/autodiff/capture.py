"""Capture: where parameters meet data, on the ordinary autograd graph of the plain batched forward pass.

One forward pass, one backward pass that stops at the meetings of weights and data (weight gradients are never computed), and
one rule a meeting that turns (saved input z, output cotangent g) into a form. A meeting without a rule takes the exact masked
path: its node alone is called once a sample. Every new graph is checked once against one plainly differentiated sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from hesse.autodiff.deliver import Captured, Collector, deliver
from hesse.autodiff.forward import Forward, run_samples
from hesse.autodiff.layout import Walk, rounded
from hesse.autodiff.plan import Plan, PlannedMeeting, keeps_samples_apart, make_plan, moves_samples
from hesse.autodiff.refusals import typed_errors
from hesse.autodiff.uses import form_of
from hesse.core.errors import UnsupportedError
from hesse.rules.forms import Form

_PLANS_OF_A_MODEL = 256
_plans: WeakKeyDictionary[Any, dict[Any, Plan]] = WeakKeyDictionary()


def plan_of(forward: Forward, walk: Walk, asked: str) -> tuple[Plan, bool]:
    """The plan of a graph, and whether it is new; remembered outside of the user's objects, by model and graph.

    A graph that differs from a remembered one only in lengths that round up to the same power of two takes over its plan.

    Raises:
        UnsupportedError: reentrant checkpointing, which hides its parameters from the graph. MixedSamplesError: samples
        influence each other.
    """
    if any(node.name() == "CheckpointFunctionBackward" for node in walk.nodes):
        raise UnsupportedError(
            asked,
            "reentrant checkpointing (CheckpointFunctionBackward), which hides its parameters from the graph",
            "call torch.utils.checkpoint.checkpoint(..., use_reentrant=False)",
        )
    try:
        remembered = _plans.setdefault(forward.model.key, {})
    except TypeError:
        remembered = {}
    training = forward.model.module is not None and forward.model.module.training
    facts = (tuple(walk.tracked.items()), training, forward.attached)
    exact = ("exact", walk.signature(), facts, forward.count)
    plan, is_new = remembered.get(exact), False
    if plan is None:
        near = ("near", walk.signature(rounded), facts, rounded(forward.count))
        known = remembered.get(near)
        plan = known.resized(walk, forward.count) if known is not None else None
        if plan is None:
            plan, is_new = _new_plan(forward, walk, asked), True
        if plan.is_sure:
            remembered[exact] = remembered[near] = plan
            while len(remembered) > _PLANS_OF_A_MODEL:
                del remembered[next(iter(remembered))]
    mover = moves_samples(plan, walk, forward.count)
    return (Plan((), reason=f"samples change places in {mover}"), True) if mover else (plan, is_new)


def _new_plan(forward: Forward, walk: Walk, asked: str) -> Plan:
    kept: list[Forward] = []

    def run(samples: Tensor) -> tuple[Tensor, Walk]:
        devices = [forward.model.device] if forward.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            kept.append(run_samples(forward, samples, asked, attached=forward.attached))
        return kept[-1].output, kept[-1].walk

    plan = make_plan(walk, forward.output.shape, forward.count, run, asked)
    if not keeps_samples_apart(plan, walk, forward.output, forward.count):
        return Plan((), reason="samples change places")
    return plan


def forget(forward: Forward) -> None:
    """Forget the plans of a model (after a plan failed its check)."""
    _plans.pop(forward.model.key, None)


def capture(forward: Forward, walk: Walk, plan: Plan, cotangent: Tensor) -> Captured:
    """The forms of every parameter for one cotangent of the output.

    Cost: one backward pass without the weight gradients; a masked meeting adds n times its node's own backward.
    """
    collector = Collector({name: [] for name in forward.leaves})
    edges = _edges(plan.meetings)
    found = dict(zip(edges, _towards(forward, walk, edges, cotangent), strict=True)) if edges else {}
    notes: dict[Any, Any] = {}
    with torch.set_grad_enabled(forward.attached):
        for m in plan.meetings:
            _use(forward, walk, m, [found[m.node, slot] for slot in m.outputs], notes, collector)
    return collector.finish()


def stream(
    forward: Forward, walk: Walk, plan: Plan, cotangent: Tensor, take: Callable[[str, Sequence[Form]], None]
) -> dict[str, str]:
    """Like `capture`, but hands over the forms of a parameter as soon as the backward pass has left its last use.

    Args:
        forward, walk, plan, cotangent: as for `capture`.
        take: called once for every parameter that is used, with its name and forms, which are not kept.

    Returns:
        The paths of the parameters.
    """
    collector = Collector({name: [] for name in forward.leaves})
    open_uses: dict[str, int] = {}
    for m in plan.meetings:
        for i in m.params:
            name = walk.leaves[walk.nodes[i]]
            open_uses[name] = open_uses.get(name, 0) + 1
    by_node: dict[int, list[PlannedMeeting]] = {}
    for m in plan.meetings:
        by_node.setdefault(m.node, []).append(m)

    def visit(i: int, grads: Sequence[Tensor | None]) -> None:
        notes: dict[Any, Any] = {}
        with torch.no_grad():
            for m in by_node[i]:
                _use(forward, walk, m, [grads[slot] for slot in m.outputs], notes, collector)
                for name in (walk.leaves[walk.nodes[j]] for j in m.params):
                    open_uses[name] -= 1
                    if not open_uses[name] and collector.forms[name]:
                        take(name, collector.forms[name])
                        collector.forms[name] = []

    inner = _before_others(walk, set(by_node))
    last = _edges([m for m in plan.meetings if m.node not in inner])
    hooks = [walk.nodes[i].register_prehook(lambda grads, i=i: visit(i, grads)) for i in inner]
    try:
        found = dict(zip(last, _towards(forward, walk, last, cotangent), strict=True)) if last else {}
    finally:
        for hook in hooks:
            hook.remove()
    for i in by_node:
        if i not in inner:
            width = 1 + max(slot for m in by_node[i] for slot in m.outputs)
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


def _use(
    forward: Forward, walk: Walk, m: PlannedMeeting, cotangents: Sequence[Tensor | None], notes: dict[Any, Any], to: Collector
) -> None:
    if any(g is not None for g in cotangents):
        form, path = form_of(walk, m, cotangents, forward.count, notes, forward.attached)
        deliver(walk, m, form, path, to, forward.attached)


def _edges(meetings: Sequence[PlannedMeeting]) -> list[tuple[int, int]]:
    return sorted({(m.node, slot) for m in meetings for slot in m.outputs})


def _towards(forward: Forward, walk: Walk, edges: list[tuple[int, int]], cotangent: Tensor) -> tuple[Tensor | None, ...]:
    targets = [GradientEdge(walk.nodes[i], slot) for i, slot in edges]
    options: dict[str, Any] = {"retain_graph": True, "create_graph": forward.attached, "allow_unused": True}
    with typed_errors():
        return torch.autograd.grad(forward.output, targets, cotangent, **options)
