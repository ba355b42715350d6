"""The plan of a graph: which nodes are meetings of weights and data, and where the samples are at each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from hesse.autodiff.layout import Walk, same_program, sample_axis, split_axis
from hesse.autodiff.recording import node_outputs
from hesse.core import random
from hesse.core.errors import MixedSamplesError
from hesse.rules.layers import SampleAxis

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PlannedMeeting:
    """A batch-shaped node with an edge to a weight-like one, by positions in the walk.

    Attributes:
        node: the meeting; `outputs`: those of its outputs that are used; `where`: the samples' axis in each.
        index: the input of the meeting that is weight-like; `weight`, `slot`: the node and output it comes from.
        shape: the weight-like tensor's shape.
        params: positions of the parameters' accumulation nodes that the weight-like tensor leads to.
    """

    node: int
    outputs: tuple[int, ...]
    where: tuple[SampleAxis, ...]
    index: int
    weight: int
    slot: int
    shape: torch.Size
    params: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """All meetings of a graph, or the reason why there is no plan and samples are run one by one."""

    meetings: tuple[PlannedMeeting, ...]
    reason: str = ""


def make_plan(walk: Walk, output_shape: torch.Size, tracked: dict[int, str], count: int, run: Run, asked: str) -> Plan:
    """Find the meetings of a graph.

    Args:
        walk: the graph of the whole batch.
        output_shape: the shape of its output, in which samples come first where they are merged with other axes.
        tracked: positions of the parameters' accumulation nodes -> names.
        count: number of samples.
        run: runs the model on the samples with the given indices and returns its output.
        asked: for error messages.

    Raises:
        MixedSamplesError: a sample's cotangent reaches another sample.
    """
    fewer = 3 if count != 3 else 5
    root = run(torch.arange(fewer) % count)
    probe = Walk.of(root)
    output = sample_axis(output_shape, root.shape, count, fewer)
    if not same_program(walk, probe) or not isinstance(output, SampleAxis):
        return Plan((), "the program changes with the number of samples")
    leads = _leads_to(walk, tracked)
    axes: dict[tuple[int, int], SampleAxis | bool | None] = {}
    for i, (node, other) in enumerate(zip(walk.nodes, probe.nodes, strict=True)):
        for slot, (a, b) in enumerate(zip(node_outputs(node), node_outputs(other), strict=True)):
            axes[i, slot] = sample_axis(a.shape, b.shape, count, fewer)
    used = _used_outputs(walk)
    plain = _weight_like(walk, leads, axes, used)
    found, reason = _meetings(walk, leads, axes, used, plain)
    if reason:
        return Plan((), reason)
    return Plan(tuple(_probe(found, probe, root, output, fewer, asked)))


def _leads_to(walk: Walk, tracked: dict[int, str]) -> list[frozenset[int]]:
    leads: dict[int, frozenset[int]] = {}
    for i in _parents_first(walk):
        own = frozenset({i}) if i in tracked else frozenset()
        node = walk.nodes[i]
        leads[i] = own.union(*(leads[walk.position[p]] for p, _ in node.next_functions if p is not None))
    return [leads[i] for i in range(len(walk.nodes))]


def _parents_first(walk: Walk) -> list[int]:
    order: list[int] = []
    state = [0] * len(walk.nodes)
    pending = [0] if walk.nodes else []
    while pending:
        i = pending[-1]
        if state[i] == 0:
            state[i] = 1
            pending.extend(j for p, _ in walk.nodes[i].next_functions if p is not None and state[j := walk.position[p]] == 0)
        else:
            pending.pop()
            if state[i] == 1:
                state[i] = 2
                order.append(i)
    return order


def _used_outputs(walk: Walk) -> list[tuple[int, ...]]:
    used: list[set[int]] = [set() for _ in walk.nodes]
    if used:
        used[0].add(0)
    for node in walk.nodes:
        for parent, slot in node.next_functions:
            if parent is not None:
                used[walk.position[parent]].add(slot)
    return [tuple(sorted(slots)) for slots in used]


def _weight_like(walk: Walk, leads: Any, axes: Any, used: Any) -> list[bool]:
    plain = [False] * len(walk.nodes)
    for i in _parents_first(walk):
        parents = [walk.position[p] for p, _ in walk.nodes[i].next_functions if p is not None]
        plain[i] = all(axes[i, slot] is None for slot in used[i]) and all(plain[j] or not leads[j] for j in parents)
    return plain


def _meetings(walk: Walk, leads: Any, axes: Any, used: Any, plain: list[bool]) -> tuple[list[PlannedMeeting], str]:
    found = []
    for i, node in enumerate(walk.nodes):
        if plain[i] or not leads[i]:
            continue
        where = [axes[i, slot] for slot in used[i]]
        if any(axis is False for axis in where):
            return [], f"the shape of {node.name()} is not in proportion to the number of samples"
        for index, (parent, slot) in enumerate(node.next_functions):
            if parent is None or not plain[j := walk.position[parent]] or not leads[j]:
                continue
            if any(axis is None for axis in where):
                return [], f"{node.name()} joins samples and weights in a shape without samples"
            shape = torch.Size(node_outputs(parent)[slot].shape)
            found.append(PlannedMeeting(i, used[i], tuple(where), index, j, slot, shape, tuple(sorted(leads[j]))))
    return found, ""


def _probe(
    found: list[PlannedMeeting], probe: Walk, root: Tensor, output: SampleAxis, fewer: int, asked: str
) -> list[PlannedMeeting]:
    edges = [(m.node, slot) for m in found for slot in m.outputs]
    if not edges:
        return []
    noise = random.normal(root.shape, root.dtype, root.device, random.make_generator())
    cotangents: list[list[Tensor]] = []
    for sample in range(fewer):
        rows = output.rows(noise).clone()
        rows[[s for s in range(fewer) if s != sample]] = 0
        grads = torch.autograd.grad(
            root,
            [GradientEdge(probe.nodes[i], slot) for i, slot in edges],
            output.unrows(rows),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        cotangents.append(list(grads))
    by_edge = {edge: [row[k] for row in cotangents] for k, edge in enumerate(edges)}
    result = []
    for m in found:
        where = []
        for slot, guess in zip(m.outputs, m.where, strict=True):
            split = split_axis(guess, by_edge[m.node, slot])
            if split is None:
                raise MixedSamplesError(
                    asked,
                    f"samples influence each other after {probe.nodes[m.node].name()} (position {m.node} of the graph)",
                    "use statistics of each sample only, or the batch quantities (loss_hessian, ggn) instead",
                )
            where.append(split)
        result.append(PlannedMeeting(m.node, m.outputs, tuple(where), m.index, m.weight, m.slot, m.shape, m.params))
    return result
