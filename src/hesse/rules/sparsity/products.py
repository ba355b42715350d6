"""Matrix products and what is made of them."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.rules.sparsity.forms import Call, Grouped, Link, Same, shared, sparsity_rules


@sparsity_rules.register("mm", "bmm", "mv", "dot", "vdot", "addmm", "addmv", "baddbmm", "addbmm", "_addmm_activation", "addr")
def product(call: Call) -> list[Link]:
    """An element on a row of the first factor and a column of the second."""
    *added, a, b = call.operands
    y, name = call.outputs[0], call.func.overloadpacket.__name__.rstrip("_")
    links: list[Link] = [(0, t, Same()) for t in added]
    if name in ("dot", "vdot"):
        return links + [
            (0, t, Grouped(torch.zeros(t.shape, dtype=torch.int64), torch.zeros((), dtype=torch.int64))) for t in (a, b)
        ]
    if name in ("mv", "addmv"):
        return [*links, (0, a, Grouped(shared(a.shape, [0]), torch.arange(y.numel()))),
                (0, b, Grouped(torch.zeros(b.shape, dtype=torch.int64), torch.zeros(y.shape, dtype=torch.int64)))]  # fmt: skip
    if name == "addr":
        return [*links, (0, a, Grouped(torch.arange(a.numel()), shared(y.shape, [0]))),
                (0, b, Grouped(torch.arange(b.numel()), shared(y.shape, [1])))]  # fmt: skip
    batch = [0] if name in ("bmm", "baddbmm") else []
    return [*links, (0, a, Grouped(shared(a.shape, [*batch, a.ndim - 2]), shared(y.shape, [*batch, y.ndim - 2]))),
            (0, b, Grouped(shared(b.shape, [*batch, b.ndim - 1]), shared(y.shape, [*batch, y.ndim - 1])))]  # fmt: skip


@sparsity_rules.register("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
                         "_scaled_dot_product_efficient_attention", "_scaled_dot_product_attention_math")  # fmt: skip
def attention(call: Call) -> list[Link]:
    """A query's result on that query, and on all keys and values of its batch and head."""
    query, key, value = call["query"], call["key"], call["value"]
    front, links = list(range(query.ndim - 2)), list[Link]()
    for index, y in enumerate(call.outputs):
        if y.ndim < query.ndim - 1 or not y.is_floating_point():
            continue
        rows = shared(y.shape, [*front, query.ndim - 2])
        links.append((index, query, Grouped(shared(query.shape, [*front, query.ndim - 2]), rows)))
        for t in (key, value, *(t for t in call.operands if t not in (query, key, value))):
            links.append((index, t, _heads(t, y, len(front))))
    return links


def _heads(t: Tensor, y: Tensor, front: int) -> Grouped:
    if t.ndim < front or t.shape[:front] != y.shape[:front]:
        return Grouped(torch.zeros(t.shape, dtype=torch.int64), torch.zeros(y.shape, dtype=torch.int64))
    axes = list(range(front))
    return Grouped(shared(t.shape, axes), shared(y.shape, axes))


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


@sparsity_rules.register("_pdist_forward")
def own_distances(call: Call) -> list[Link]:
    """A distance on the two points that it is between."""
    x = call["self"]
    i, j = torch.triu_indices(len(x), len(x), 1)
    points = shared(x.shape, [0])
    return [(0, x, Grouped(points, i)), (0, x, Grouped(points, j))]
