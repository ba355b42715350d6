"""Where the samples are: the graph of a batch laid beside the graph of a few of its samples.

Axes whose length changes with the number of samples hold them; a node on which no shape changes holds none. Where samples are
merged with other axes, a probe with the cotangent of one sample alone tells sample-major from time-major.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.recording import node_outputs, nodes
from hesse.rules.layers import SampleAxis


@dataclass(frozen=True)
class Walk:
    """The nodes of a graph in a fixed order, and their positions."""

    nodes: tuple[Any, ...]
    position: dict[Any, int]

    @classmethod
    def of(cls, root: Tensor) -> Walk:
        """The graph behind a tensor."""
        found = tuple(nodes([root.grad_fn]))
        return cls(found, {node: i for i, node in enumerate(found)})

    def signature(self) -> tuple[Any, ...]:
        """Names, shapes and edges: equal for graphs of the same program on data of the same shapes."""
        rows = []
        for node in self.nodes:
            shapes = tuple(tuple(meta.shape) for meta in node_outputs(node))
            edges = tuple((self.position[parent], slot) if parent is not None else None for parent, slot in node.next_functions)
            rows.append((node.name(), shapes, edges))
        return tuple(rows)


def same_program(first: Walk, second: Walk) -> bool:
    """Whether two graphs differ in nothing but shapes."""
    if len(first.nodes) != len(second.nodes):
        return False
    return all(a[0] == b[0] and a[2] == b[2] for a, b in zip(first.signature(), second.signature(), strict=True))


def sample_axis(shape: Sequence[int], other: Sequence[int], count: int, other_count: int) -> SampleAxis | bool | None:
    """Which axis holds the samples, from the shapes for two numbers of samples.

    Returns:
        An axis with everything merged in taken to come after the samples; None: no axis depends on their number; False: more
        than one does, or not in proportion.
    """
    if tuple(shape) == tuple(other):
        return None
    if len(shape) != len(other):
        return False
    changed = [axis for axis, (a, b) in enumerate(zip(shape, other, strict=True)) if a != b]
    if len(changed) != 1 or shape[changed[0]] % count or other[changed[0]] % other_count:
        return False
    each = shape[changed[0]] // count
    return SampleAxis(changed[0], 1, each) if each == other[changed[0]] // other_count else False


def split_axis(guess: SampleAxis, cotangents: Sequence[Tensor]) -> SampleAxis | None:
    """How an axis is merged, from the cotangents of single samples: of sample 0 alone, of sample 1 alone, ...

    Returns:
        The axis as ``(before, samples, after)``; None if a sample's cotangent reaches another sample's place.
    """
    count, each = len(cotangents), guess.before * guess.after
    alive = torch.stack([_positions(g, guess.axis) for g in cotangents])
    for before in (b for b in range(1, each + 1) if each % b == 0):
        owner = torch.arange(count, device=alive.device).reshape(1, count, 1).expand(before, count, each // before).reshape(-1)
        own = owner.unsqueeze(0) == torch.arange(count, device=alive.device).unsqueeze(1)
        if not bool((alive & ~own).any()):
            return SampleAxis(guess.axis, before, each // before)
    return None


def _positions(g: Tensor, axis: int) -> Tensor:
    return (g.detach() != 0).movedim(axis, 0).flatten(1).any(1) if g.ndim > 1 else g.detach() != 0
