"""Rows that are looked up and put together: embeddings and their bags, segments, sequences."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.rules.sparsity.forms import Call, Grouped, Link, Pairs, Same, everything, places, shared, sparsity_rules, whole
from hesse.rules.sparsity.movement import is_moved


@sparsity_rules.register("embedding_dense_backward")
def embedding_backward(call: Call) -> list[Link]:
    """A row of the table on the gradients of the places that looked it up."""
    grad, index, y = call["grad_output"], call["indices"], call.outputs[0]
    column = shared(grad.shape, [grad.ndim - 1])
    if not call.is_fixed(index):
        return [(0, grad, Grouped(column, shared(y.shape, [1])))]
    return [(0, grad, Grouped(index.cpu().unsqueeze(-1) * y.shape[1] + column, places(y)))]


@sparsity_rules.register("embedding_renorm")
def embedding_renorm(call: Call) -> list[Link]:
    """Rows that are scaled."""
    x = call["self"]
    return [(0, x, Grouped(shared(x.shape, [0]), shared(x.shape, [0])))]


@sparsity_rules.register("_embedding_bag", "_embedding_bag_forward_only")
def bag(call: Call) -> list[Link]:
    """Rows of a table that are summed, averaged or compared, each column by itself."""
    table, index, offsets, weights = call["weight"], call["indices"], call["offsets"], call["per_sample_weights"]
    y = call.outputs[0]
    links: list[Link] = [(0, weights, whole(weights, y))] if isinstance(weights, Tensor) else []
    if not (call.is_fixed(index) and call.is_fixed(offsets)):
        return [*links, (0, table, Grouped(shared(table.shape, [1]), shared(y.shape, [1])))]
    starts, index = offsets.cpu().to(torch.int64), index.cpu().to(torch.int64)
    bags = torch.searchsorted(starts, torch.arange(len(index)), right=True) - 1
    inside = (bags >= 0) & (bags < len(y))
    columns = torch.arange(y.shape[1])
    members, results = ((i[inside].unsqueeze(-1) * y.shape[1] + columns).flatten() for i in (index, bags))
    links = [(0, weights, Grouped(torch.where(inside, bags, -1), shared(y.shape, [0])))] if isinstance(weights, Tensor) else []
    return [*links, (0, table, Pairs(places(table), members, results, places(y)))]


@sparsity_rules.register("_embedding_bag_dense_backward")
def bag_backward(call: Call) -> list[Link]:
    """Each column by itself; weights of samples go everywhere."""
    y = call.outputs[0]
    return [(0, t, Grouped(shared(t.shape, [1]), shared(y.shape, [1])) if t is call["grad"] else whole(t, y))
            for t in call.operands if is_moved(t)]  # fmt: skip


@sparsity_rules.register("_embedding_bag_per_sample_weights_backward")
def bag_weights_backward(call: Call) -> list[Link]:
    """The gradient of a weight on that of its bag, and on its row of the table."""
    grad, table, y = call["grad"], call["weight"], call.outputs[0]
    index, bags = call["indices"], call["offset2bag"]
    if not (call.is_fixed(index) and call.is_fixed(bags)) or len(bags) != y.numel():
        return everything(call, [grad, table])
    return [(0, grad, Grouped(shared(grad.shape, [0]), bags.cpu())), (0, table, Grouped(shared(table.shape, [0]), index.cpu()))]


@sparsity_rules.register("segment_reduce", "_segment_reduce_backward")
def segments(call: Call) -> list[Link]:
    """An element on its segment, of the same place along the other axes."""
    data, backward = call["data"], "grad" in call.given
    y, axis = call.outputs[0], call["axis"] % data.ndim
    lengths, offsets = call["lengths"], call["offsets"]
    moved = [t for t in call.operands if t is not lengths and t is not offsets and is_moved(t)]
    others = [a for a in range(data.ndim) if a != axis]
    fixed = [t for t in (lengths, offsets) if isinstance(t, Tensor)]
    if not fixed or not all(map(call.is_fixed, fixed)) or fixed[0].ndim != 1 or axis:
        return [(0, t, Grouped(_line(t, others), _line(y, others))) for t in moved]
    found = lengths.cpu() if lengths is not None else offsets.cpu().diff()
    segment = torch.arange(len(found)).repeat_interleave(found)
    segment = torch.cat([segment, torch.full((data.shape[0] - len(segment),), -1)])
    inner = data.shape[1:].numel()

    def numbers(t: Tensor) -> Tensor:
        own = segment if t is data or (backward and t is y) else torch.arange(len(found))
        at = own.unsqueeze(-1) * inner + torch.arange(inner)
        return torch.where(own.unsqueeze(-1) >= 0, at, -1).view(t.shape)

    return [(0, t, Grouped(numbers(t), numbers(y))) for t in moved]


def _line(t: Tensor, others: list[int]) -> Tensor:
    return shared(t.shape, others)


@sparsity_rules.register("_ctc_loss", "_ctc_loss_backward")
def alignments(call: Call) -> list[Link]:
    """Each sequence by itself: the scores have it as their second axis, losses and tables as their first."""
    scores = call["log_probs"]
    if scores.ndim < 3:
        return everything(call, [t for t in call.operands if is_moved(t)])

    backward = "grad" in call.given

    def sequence(t: Tensor, *, scored: bool) -> Tensor:
        return shared(t.shape, [1 if scored else 0])

    return [(index, t, Grouped(sequence(t, scored=t is scores), sequence(y, scored=backward)) if t.ndim else Same())
            for index, y in enumerate(call.outputs) for t in call.operands if is_moved(t)]  # fmt: skip
