"""Distances between points, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.rules.sparsity.forms import Call, Grouped, Link, shared, sparsity_rules, whole


@sparsity_rules.register("_cdist_forward", "_euclidean_dist")
def distances(call: Call) -> list[Link]:
    """A distance on the two points that it is between, of the same batch."""
    a, b = call.operands[:2]
    y = call.outputs[0]
    return [(0, a, _points(a, y, y.ndim - 2)), (0, b, _points(b, y, y.ndim - 1))]


def _points(t: Tensor, y: Tensor, axis: int) -> Grouped:
    batch = y.shape[:-2]
    full = torch.arange(t[..., 0].numel()).view(t.shape[:-1]).expand(*batch, t.shape[-2])
    of_y = full.unsqueeze(-1 if axis == y.ndim - 2 else -2).expand(y.shape)
    return Grouped(torch.arange(t[..., 0].numel()).view(t.shape[:-1]).unsqueeze(-1).expand(t.shape), of_y)


@sparsity_rules.register("_cdist_backward")
def distances_backward(call: Call) -> list[Link]:
    """The gradient of a point on itself, on the gradients of its own distances, and on all points of the other side."""
    grad, x, other, found = call["grad"], call["x1"], call["x2"], call["cdist"]
    y = call.outputs[0]
    rows = _rows(y)
    links: list[Link] = [(0, t, Grouped(_rows(t), rows)) for t in (grad, found) if t.shape[:-1] == y.shape[:-1]]
    links += [(0, t, whole(t, y)) for t in (grad, found) if t.shape[:-1] != y.shape[:-1]]
    links.append((0, x, Grouped(_rows(x), _broadcast_rows(x, y))))
    front = y.shape[:-2]
    if other.shape[:-2] == front:
        batch = list(range(len(front)))
        return [*links, (0, other, Grouped(shared(other.shape, batch), shared(y.shape, batch)))]
    return [*links, (0, other, whole(other, y))]


def _rows(t: Tensor) -> Tensor:
    return shared(t.shape, list(range(t.ndim - 1)))


def _broadcast_rows(t: Tensor, y: Tensor) -> Tensor:
    return shared(t.shape[:-1], list(range(t.ndim - 1))).expand(y.shape[:-1]).unsqueeze(-1).expand(y.shape)


@sparsity_rules.register("_pdist_backward")
def own_distances_backward(call: Call) -> list[Link]:
    """Everything on everything."""
    return [(0, t, whole(t, call.outputs[0])) for t in call.operands]


@sparsity_rules.register("_pdist_forward")
def own_distances(call: Call) -> list[Link]:
    """A distance on the two points that it is between."""
    x = call["self"]
    i, j = torch.triu_indices(len(x), len(x), 1)
    points = shared(x.shape, [0])
    return [(0, x, Grouped(points, i)), (0, x, Grouped(points, j))]
