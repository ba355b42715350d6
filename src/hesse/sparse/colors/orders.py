"""In which order a greedy coloring visits its vertices.

Gebremedhin, Nguyen, Patwary and Pothen, ColPack: software for graph coloring and related problems in scientific computing,
ACM Trans. Math. Softw. 2013, section 3: natural, random, largest first, and the three that change with what was ordered before.
"""

from __future__ import annotations

import heapq
from typing import Literal

import numpy as np
import torch

from hesse.core import random
from hesse.sparse.colors.graph import lists
from hesse.sparse.compressed import Indices
from hesse.sparse.pattern import Pattern

Order = Literal["natural", "largest first", "smallest last", "incidence degree", "dynamic largest first", "random"]
ORDERS: tuple[Order, ...] = ("natural", "largest first", "smallest last", "incidence degree", "dynamic largest first", "random")


def needs_graph(order: Order) -> bool:
    """Whether an order looks at the edges."""
    return order not in ("natural", "random")


def order_of(order: Order, size: int, graph: Pattern | None = None, generator: torch.Generator | None = None) -> Indices:
    """The vertices of a graph in an order.

    Args:
        order: which.
        size: number of vertices.
        graph: symmetric, without diagonal; for the orders that look at edges.
        generator: for "random"; without one, the same at every call.

    Returns:
        ``[vertices]``, a permutation.
    """
    if order == "natural":
        return np.arange(size)
    if order == "random":
        return torch.randperm(size, generator=generator or random.make_generator()).numpy()
    assert graph is not None
    degrees = np.diff(graph.indptr)
    if order == "largest first":
        return np.argsort(-degrees, kind="stable")
    if order == "smallest last":
        return _dynamic(graph, degrees.tolist(), -1)[::-1]
    if order == "dynamic largest first":
        return _dynamic(graph, (-degrees).tolist(), 1)
    return _dynamic(graph, [0] * size, -1)


def _dynamic(graph: Pattern, keys: list[int], step: int) -> Indices:
    """Take the vertex with the smallest key, add `step` to the keys of its neighbors that are left, and so on."""
    neighbors, left = lists(graph), [True] * len(keys)
    heap = [(key, vertex) for vertex, key in enumerate(keys)]
    heapq.heapify(heap)
    order = []
    while heap:
        key, vertex = heapq.heappop(heap)
        if not left[vertex] or key != keys[vertex]:
            continue
        left[vertex] = False
        order.append(vertex)
        for other in neighbors[vertex]:
            if left[other]:
                keys[other] += step
                heapq.heappush(heap, (keys[other], other))
    return np.array(order, np.int64)
