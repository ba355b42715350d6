"""The plan of a graph: which nodes are meetings of weights and data, and where the samples are at each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from hesse.autodiff.layout import Walk, same_program, sample_axis, split_axis
from hesse.autodiff.recording import node_outputs
from hesse.autodiff.refusals import typed_errors
from hesse.core import random
from hesse.core.batching import separating_masks
from hesse.core.errors import MixedSamplesError
from hesse.rules.layers import SampleAxis

Run = Callable[[Tensor], tuple[Tensor, Walk]]


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
    """All meetings of a graph, or the reason why there is no plan and samples are run one by one.

    Attributes:
        meetings: the meetings.
        movers: nodes that pick places along the samples' axis by an index, with that axis; `moves_samples` looks at the index.
        reason: why there is no plan.
        is_sure: whether every meeting was seen alive, in one layout only; a plan that is not sure is not remembered.
    """

    meetings: tuple[PlannedMeeting, ...]
    movers: tuple[tuple[int, SampleAxis], ...] = ()
    reason: str = ""
    is_sure: bool = True

    def resized(self, walk: Walk, count: int) -> Plan | None:
        """The plan for the same program on data of other lengths; None where these do not tell how axes are merged."""
        meetings = []
        for m in self.meetings:
            where = [_resized(w, walk, m.node, slot, count) for slot, w in zip(m.outputs, m.where, strict=True)]
            shape = torch.Size(node_outputs(walk.nodes[m.weight])[m.slot].shape)
            meetings.append(replace(m, where=tuple(where), shape=shape))
        return None if any(None in m.where for m in meetings) else replace(self, meetings=tuple(meetings))


def _resized(where: SampleAxis, walk: Walk, node: int, slot: int, count: int) -> SampleAxis | None:
    length = node_outputs(walk.nodes[node])[slot].shape[where.axis]
    each = length // count
    if length % count or (where.before > 1 and where.after > 1) or (where.is_plain and each > 1):
        return None
    return SampleAxis(where.axis, each, 1) if where.before > 1 else SampleAxis(where.axis, 1, each)


def make_plan(walk: Walk, output_shape: torch.Size, count: int, run: Run, asked: str) -> Plan:
    """Find the meetings of a graph, by a run on three of its samples; where these leave open how axes are merged, on more.

    A block of d positions looks like one position where d = 1 modulo the number of samples, hence several numbers are tried.
    """
    plan = Plan(())
    for fewer in (3, 11, 7, 13):
        plan = _make_plan(walk, output_shape, count, fewer if count != fewer else fewer + 2, run, asked)
        if plan.is_sure or plan.reason:
            break
    return plan


def _make_plan(walk: Walk, output_shape: torch.Size, count: int, fewer: int, run: Run, asked: str) -> Plan:
    """Find the meetings of a graph from a run on a few samples.

    Args:
        walk: the graph of the whole batch.
        output_shape: the shape of its output, in which samples come first where they are merged with other axes.
        count: number of samples; `fewer`: how many to run.
        run: runs the model on the samples with the given indices; its output, and the graph behind it.
        asked: for error messages.

    Raises:
        MixedSamplesError: a sample's cotangent reaches another sample.
    """
    root, probe = run(torch.arange(fewer) % count)
    output = sample_axis(output_shape, root.shape, count, fewer)
    if not same_program(walk, probe) or not isinstance(output, SampleAxis):
        return Plan((), reason="the program changes with the number of samples")
    leads = _leads_to(walk)
    axes: dict[tuple[int, int], SampleAxis | bool | None] = {}
    for i, (node, other) in enumerate(zip(walk.nodes, probe.nodes, strict=True)):
        for slot, (a, b) in enumerate(zip(node_outputs(node), node_outputs(other), strict=True)):
            axes[i, slot] = sample_axis(a.shape, b.shape, count, fewer)
    used = _used_outputs(walk)
    plain = _weight_like(walk, leads, axes, used)
    found, reason = _meetings(walk, leads, axes, used, plain)
    if reason:
        return Plan((), reason=reason)
    movers = tuple(_movers(walk, leads, axes, plain))
    return _probe(Plan(tuple(found), movers), probe, root, output, fewer, asked)


def _leads_to(walk: Walk) -> list[frozenset[int]]:
    leads: dict[int, frozenset[int]] = {}
    for i in _parents_first(walk):
        own = frozenset({i}) if walk.nodes[i] in walk.leaves else frozenset()
        leads[i] = own.union(*(leads[edge[0]] for edge in walk.edges[i] if edge is not None))
    return [leads[i] for i in range(len(walk.nodes))]


def _parents_first(walk: Walk) -> list[int]:
    order: list[int] = []
    state = [0] * len(walk.nodes)
    pending = [0] if walk.nodes else []
    while pending:
        i = pending[-1]
        if state[i] == 0:
            state[i] = 1
            pending.extend(edge[0] for edge in walk.edges[i] if edge is not None and state[edge[0]] == 0)
        else:
            pending.pop()
            if state[i] == 1:
                state[i] = 2
                order.append(i)
    return order


def _used_outputs(walk: Walk) -> list[tuple[int, ...]]:
    used: list[set[int]] = [set() for _ in walk.nodes]
    if used:
        used[0].add(walk.slot)
    for j, slot in (edge for edges in walk.edges for edge in edges if edge is not None):
        used[j].add(slot)
    return [tuple(sorted(slots)) for slots in used]


def _weight_like(walk: Walk, leads: Any, axes: Any, used: Any) -> list[bool]:
    plain = [False] * len(walk.nodes)
    for i in _parents_first(walk):
        parents = [edge[0] for edge in walk.edges[i] if edge is not None]
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
        for index, edge in enumerate(walk.edges[i]):
            if edge is None or not plain[edge[0]] or not leads[edge[0]]:
                continue
            if any(axis is None for axis in where):
                return [], f"{node.name()} joins samples and weights in a shape without samples"
            j, slot = edge
            shape = torch.Size(node_outputs(walk.nodes[j])[slot].shape)
            found.append(PlannedMeeting(i, used[i], tuple(where), index, j, slot, shape, tuple(sorted(leads[j]))))
    return found, ""


def _probe(plan: Plan, probe: Walk, root: Tensor, output: SampleAxis, fewer: int, asked: str) -> Plan:
    """Find out how samples are merged with other axes, from the cotangents of single samples."""
    edges = sorted({(m.node, slot) for m in plan.meetings for slot in m.outputs})
    noise = output.rows(random.normal(root.shape, root.dtype, root.device, random.make_generator()))
    seen: dict[tuple[int, int], list[Tensor]] = {edge: [] for edge in edges}
    for sample in range(fewer if edges else 0):
        rows = torch.zeros_like(noise)
        rows[sample] = noise[sample]
        grads = _towards(root, probe, edges, output.unrows(rows))
        for (i, slot), grad in zip(edges, grads, strict=True):
            meta = node_outputs(probe.nodes[i])[slot]
            seen[i, slot].append(root.new_zeros(tuple(meta.shape)) if grad is None else grad)
    meetings, is_sure = [], True
    for m in plan.meetings:
        where = []
        for slot, guess in zip(m.outputs, m.where, strict=True):
            split = split_axis(guess, seen[m.node, slot])
            if split.is_mixed:
                raise MixedSamplesError(
                    asked,
                    f"samples influence each other after {probe.nodes[m.node].name()} (position {m.node} of the graph)",
                    "use statistics of each sample only, or the batch quantities (loss_hessian, ggn) instead",
                )
            if not split.axes:
                return Plan((), reason=f"samples change places after {probe.nodes[m.node].name()}")
            where.append(split.axes[0])
            is_sure = is_sure and split.is_alive and len(split.axes) == 1
        meetings.append(replace(m, where=tuple(where)))
    return replace(plan, meetings=tuple(meetings), is_sure=is_sure)


def _towards(root: Tensor, walk: Walk, edges: list[tuple[int, int]], cotangent: Tensor) -> tuple[Tensor | None, ...]:
    targets = [GradientEdge(walk.nodes[i], slot) for i, slot in edges]
    with typed_errors():
        return torch.autograd.grad(root, targets, cotangent, retain_graph=True, allow_unused=True)


def keeps_samples_apart(plan: Plan, walk: Walk, root: Tensor, count: int) -> bool:
    """Whether the cotangents of some of the samples stay in the places that the plan gives to those.

    The probe sees a few samples only; samples that data put in another order (sorted by length, say) may be in order there.
    A plan that is sure is tried on a random half of the samples, any other on masks that separate every pair.

    Cost: one backward pass without weight gradients; about log2(n) of them for a plan that is not sure.
    """
    edges = sorted({(m.node, slot) for m in plan.meetings for slot in m.outputs})
    where = {(m.node, slot): axis for m in plan.meetings for slot, axis in zip(m.outputs, m.where, strict=True)}
    if not edges or count == 1:
        return True
    generator = random.make_generator()
    noise = random.normal(root.shape, root.dtype, root.device, generator).reshape(count, -1)
    masks = separating_masks(count)
    if plan.is_sure:
        masks = masks.new_zeros(1, count).index_fill_(1, torch.randperm(count, generator=generator)[: count // 2], True)
    for mask in masks.to(root.device):
        grads = _towards(root, walk, edges, (noise * mask.unsqueeze(1)).reshape(root.shape))
        by_sample = [where[edge].rows(grad) for edge, grad in zip(edges, grads, strict=True) if grad is not None]
        if any(bool(rows[~mask].any()) for rows in by_sample):
            return False
    return True


_INTO = {  # an index says where samples go
    "IndexAddBackward0", "IndexCopyBackward0", "IndexFillBackward0", "IndexPutBackward0", "MaskedScatterBackward0",
    "ScatterAddBackward0", "ScatterBackward0", "ScatterReduceBackward0",
}  # fmt: skip
_OUT_OF = {  # an index, or an order, says where samples come from
    "EmbeddingBackward0", "GatherBackward0", "IndexBackward0", "IndexSelectBackward0", "KthvalueBackward0",
    "MedianBackward1", "SortBackward0", "SortBackward1", "TakeBackward0", "TopkBackward0",
}  # fmt: skip


def _movers(walk: Walk, leads: Any, axes: Any, plain: list[bool]) -> list[tuple[int, SampleAxis]]:
    """Nodes that may take samples to other places by an index, which is data and may differ from call to call."""
    found = []
    for i, node in enumerate(walk.nodes):
        if node.name() not in _INTO | _OUT_OF or plain[i] or not leads[i]:
            continue
        sources = [edge for edge in walk.edges[i] if edge is not None and leads[edge[0]] and not plain[edge[0]]]
        if sources:
            axis = axes[i, 0] if node.name() in _INTO else axes[sources[0]]
            found.append((i, axis))
    return found


def moves_samples(plan: Plan, walk: Walk, count: int) -> str:
    """The node, if there is one, that takes samples of this batch to other places; "" if they stay."""
    return next((walk.nodes[i].name() for i, axis in plan.movers if not _stays(walk.nodes[i], axis, count)), "")


def _stays(node: Any, where: SampleAxis, count: int) -> bool:
    is_first = where.is_plain and where.axis == 0
    if hasattr(node, "_saved_indices") and isinstance(node._saved_indices, tuple):  # one index for each axis
        indices = node._saved_indices
        index = indices[where.axis] if where.axis < len(indices) else None
        return index is None or (is_first and _counts_up(index, count))
    if not hasattr(node, "_saved_dim"):
        return False
    parent, slot = next((parent, slot) for parent, slot in node.next_functions if parent is not None)
    dim, ndim = node._saved_dim, len(node_outputs(parent)[slot].shape)
    if (dim - (1 << 64) if dim >= 1 << 63 else dim) % ndim != where.axis:
        return True
    index = getattr(node, "_saved_index", None)
    return is_first and isinstance(index, Tensor) and _counts_up(index, count)


def _counts_up(index: Tensor, count: int) -> bool:
    """Whether an index names sample n at place n."""
    if index.dtype == torch.bool or index.ndim == 0 or index.shape[0] != count:
        return False
    order = torch.arange(count, device=index.device).reshape(-1, *(1,) * (index.ndim - 1))
    return bool((index == order).all())
