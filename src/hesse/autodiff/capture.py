"""Capture: where parameters meet data, on the ordinary autograd graph of the plain batched forward pass.

One forward pass, one backward pass that stops at the meetings of weights and data (weight gradients are never computed), and
one rule a meeting that turns (saved input z, output cotangent g) into a form. A meeting without a rule takes the exact masked
path: its node alone is called once a sample. Every new graph is checked once against one plainly differentiated sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from hesse.autodiff.compiled.unrecorded import note_irregular
from hesse.autodiff.deliver import Captured, Collector, deliver
from hesse.autodiff.forward import Forward, run_samples
from hesse.autodiff.layout import HIDES_PARAMETERS, Walk, rounded
from hesse.autodiff.plan import Plan, PlannedMeeting, keeps_samples_apart, make_plan, moves_samples
from hesse.autodiff.refusals import typed_errors
from hesse.autodiff.uses import form_of
from hesse.core.errors import UnsupportedError

_PLANS_OF_A_MODEL = 256
_plans: WeakKeyDictionary[Any, dict[Any, Plan]] = WeakKeyDictionary()


def plan_of(forward: Forward, walk: Walk, asked: str) -> tuple[Plan, bool]:
    """The plan of a graph, and whether it is new; remembered outside of the user's objects, by model and graph.

    A graph that differs from a remembered one only in lengths that round up to the same power of two takes over its plan.

    Raises:
        UnsupportedError: reentrant checkpointing, which hides its parameters from the graph. MixedSamplesError: samples
        influence each other.
    """
    if any(node.name() == HIDES_PARAMETERS for node in walk.nodes):
        raise UnsupportedError(
            asked,
            f"reentrant checkpointing ({HIDES_PARAMETERS}), which hides its parameters from the graph",
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
    if mover:
        plan, is_new = Plan((), reason=f"samples change places in {mover}"), True
    if is_new or plan.reason:
        alone = f"it runs samples one by one, since {plan.reason}" if plan.reason else ""
        note_irregular(alone or "it plans its graph, and checks it", lasting=bool(plan.reason))
    return plan, is_new


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
    edges = edges_of(plan.meetings)
    found = dict(zip(edges, towards(forward, walk, edges, cotangent), strict=True)) if edges else {}
    notes: dict[Any, Any] = {}
    with torch.set_grad_enabled(forward.attached):
        for m in plan.meetings:
            use_meeting(forward, walk, m, [found[m.node, slot] for slot in m.outputs], notes, collector)
    return collector.finish()


def use_meeting(
    forward: Forward, walk: Walk, m: PlannedMeeting, cotangents: Sequence[Tensor | None], notes: dict[Any, Any], to: Collector
) -> None:
    """Turn what arrived at a meeting into forms of its parameters."""
    if any(g is not None for g in cotangents):
        form, path = form_of(walk, m, cotangents, forward.count, notes, forward.attached)
        deliver(walk, m, form, path, to, forward.attached)


def edges_of(meetings: Sequence[PlannedMeeting]) -> list[tuple[int, int]]:
    """The outputs of nodes whose cotangents the meetings need."""
    return sorted({(m.node, slot) for m in meetings for slot in m.outputs})


def towards(
    forward: Forward, walk: Walk, edges: list[tuple[int, int]], cotangent: Tensor, *, batched: bool = False
) -> tuple[Tensor | None, ...]:
    """The cotangents at some edges of the graph; with `batched`, for all cotangents along a leading axis."""
    targets = [GradientEdge(walk.nodes[i], slot) for i, slot in edges]
    options: dict[str, Any] = {
        "retain_graph": True,
        "create_graph": forward.attached,
        "allow_unused": True,
        "is_grads_batched": batched,
    }
    with typed_errors():
        return torch.autograd.grad(forward.output, targets, cotangent, **options)
