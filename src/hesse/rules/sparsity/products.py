"""Matrix products and what is made of them."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from hesse.rules.sparsity.forms import Call, Grouped, Link, Moved, Pairs, Same, places, shared, sparsity_rules, whole
from hesse.rules.sparsity.sparse import sparse_product

MOST_PAIRS = 20_000_000  # of elements, beyond which zeros in a constant factor are not looked at


@sparsity_rules.register("mm", "bmm", "mv", "dot", "vdot", "addmm", "addmv", "baddbmm", "addbmm", "_addmm_activation", "addr")
def product(call: Call) -> list[Link]:
    """An element on a row of the first factor and a column of the second."""
    *added, a, b = call.operands
    if a.layout is not torch.strided or b.layout is not torch.strided:
        return sparse_product(call, added, a, b)
    y, name = call.outputs[0], call.func.overloadpacket.__name__.rstrip("_")
    if name not in ("addr", "addbmm") and (call.zeros(a) is not None or call.zeros(b) is not None):
        return [(0, t, Same()) for t in added] + _without_zeros(call, a, b)
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


@sparsity_rules.register("mul")
def factors(call: Call) -> list[Link]:
    """Element by element, but for places where the other factor is a zero that counts."""
    y, links = call.outputs[0], list[Link]()
    for t, other in itertools.permutations(call.operands, 2) if len(call.operands) > 1 else ((call["self"], None),):
        zeros = None if other is None else call.zeros(other)
        form = Same() if zeros is None else Moved(torch.where(zeros, -1, places(t)).expand(y.shape))
        links.append((0, t, form))
    return links


def _without_zeros(call: Call, a: Tensor, b: Tensor) -> list[Link]:
    """A product, or a batch of them, one factor of which has zeros that count, as long as the others are not too many."""
    matrices = a.unsqueeze(0) if a.ndim == 1 else a, b.unsqueeze(-1) if b.ndim == 1 else b
    left, right = (t if t.ndim == 3 else t.unsqueeze(0) for t in matrices)
    batch, high, inner, wide = *left.shape, right.shape[2]
    rows = torch.arange(batch * high * wide).view(batch, high, wide)
    links = list[Link]()
    for t, other in ((a, b), (b, a)):
        zeros = call.zeros(other)
        full = torch.ones((batch, inner, wide) if t is a else (batch, high, inner), dtype=torch.bool)
        nonzero = full if zeros is None else ~zeros.view(full.shape)
        n, i, j = nonzero.nonzero(as_tuple=True)
        free = torch.arange(high if t is a else wide)
        if zeros is None or len(n) * len(free) > MOST_PAIRS:
            kept = [0, 1] if t is a else [0, 2]
            form = Grouped(shared(left.shape if t is a else right.shape, kept), shared(rows.shape, kept))
        elif t is a:  # a[n, :, i] meets other[n, i, j]
            form = _pairs(t, (n[:, None] * high + free) * inner + i[:, None], rows[n[:, None], free, j[:, None]], rows)
        else:  # other[n, i, j] meets b[n, j, :]
            form = _pairs(t, (n[:, None] * inner + j[:, None]) * wide + free, rows[n[:, None], i[:, None], free], rows)
        links.append((0, t, form))
    return links


def _pairs(t: Tensor, members: Tensor, results: Tensor, rows: Tensor) -> Pairs:
    return Pairs(places(t), members.flatten(), results.flatten(), rows)


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


@sparsity_rules.register("_trilinear")
def trilinear(call: Call) -> list[Link]:
    """A sum of products of three tensors, each broadcast along its own axes: an element on those that agree with it where they
    have an axis that stays."""
    y, summed, unsqueezed = call.outputs[0], set(call["sumdim"]), list[tuple[Tensor, Tensor]]()
    for number in (1, 2, 3):
        t = call[f"i{number}"]
        shape = t
        for axis in sorted(call[f"expand{number}"]):
            shape = shape.unsqueeze(axis)
        unsqueezed.append((t, shape))
    kept = [axis for axis in range(unsqueezed[0][1].ndim) if axis not in summed]
    full = torch.broadcast_shapes(*(shape.shape for _, shape in unsqueezed))
    links = list[Link]()
    for t, shape in unsqueezed:
        groups = shared(shape.shape, kept)
        seen = groups.expand(full)[tuple(slice(0, 1) if axis in summed else slice(None) for axis in range(len(full)))]
        links.append((0, t, Grouped(groups, seen.reshape(y.shape))))
    return links


@sparsity_rules.register("dist")
def distance(call: Call) -> list[Link]:
    """One number, of everything."""
    return [(0, t, whole(t, call.outputs[0])) for t in call.operands]
