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
    """The nodes of a graph in a fixed order, their positions, and which output of the first node the graph is of."""

    nodes: tuple[Any, ...]
    position: dict[Any, int]
    slot: int = 0

    @classmethod
    def of(cls, root: Tensor) -> Walk:
        """The graph behind a tensor."""
        found = tuple(nodes([root.grad_fn]))
        return cls(found, {node: i for i, node in enumerate(found)}, root.output_nr)

    def edges(self, node: Any) -> tuple[tuple[int, int] | None, ...]:
        """Position and output of what each input of a node comes from; None for constants."""
        return tuple((self.position[parent], slot) if parent is not None else None for parent, slot in node.next_functions)

    def signature(self) -> tuple[Any, ...]:
        """Names, shapes, edges and options: equal for graphs of the same program on data of the same shapes."""
        rows: list[Any] = [self.slot]
        for node in self.nodes:
            shapes = tuple(tuple(meta.shape) for meta in node_outputs(node))
            rows.append((node.name(), shapes, self.edges(node), _options(node)))
        return tuple(rows)


def _options(node: Any) -> tuple[Any, ...]:
    """What a node keeps besides tensors and floats: axes, flags, sizes, which two runs of one program may differ in."""
    if type(node) not in _option_names:
        names = dir(type(node))
        _option_names[type(node)] = tuple(
            name for name in names if name.startswith("_saved_") and f"_raw{name}" not in names
        )
    return tuple(_hashable(getattr(node, name)) for name in _option_names[type(node)])


_option_names: dict[type, tuple[str, ...]] = {}


def _hashable(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_hashable(item) for item in value)
    return value if value is None or isinstance(value, (bool, int, str)) else None


def same_program(first: Walk, second: Walk) -> bool:
    """Whether two graphs differ in nothing but shapes."""
    if len(first.nodes) != len(second.nodes) or first.slot != second.slot:
        return False
    pairs = zip(first.nodes, second.nodes, strict=True)
    return all(a.name() == b.name() and first.edges(a) == second.edges(b) for a, b in pairs)


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


@dataclass(frozen=True)
class Split:
    """How an axis is merged, as far as the cotangents of single samples tell.

    Attributes:
        axes: the ways that agree with them, none if samples are in places of others.
        is_mixed: whether two samples' cotangents reach the same place.
        is_alive: whether any cotangent reached the axis at all.
    """

    axes: tuple[SampleAxis, ...]
    is_mixed: bool
    is_alive: bool


def split_axis(guess: SampleAxis, cotangents: Sequence[Tensor]) -> Split:
    """How an axis is merged, from the cotangents of single samples: of sample 0 alone, of sample 1 alone, ..."""
    count, each = len(cotangents), guess.before * guess.after
    alive = torch.stack([_positions(g, guess.axis) for g in cotangents])
    samples, found = torch.arange(count, device=alive.device), []
    for before in (b for b in range(1, each + 1) if each % b == 0):
        owner = samples.reshape(1, count, 1).expand(before, count, each // before).reshape(-1)
        if not bool((alive & (owner.unsqueeze(0) != samples.unsqueeze(1))).any()):
            found.append(SampleAxis(guess.axis, before, each // before))
    return Split(tuple(found), bool((alive.sum(0) > 1).any()), bool(alive.any()))


def _positions(g: Tensor, axis: int) -> Tensor:
    return (g.detach() != 0).movedim(axis, 0).flatten(1).any(1) if g.ndim > 1 else g.detach() != 0
