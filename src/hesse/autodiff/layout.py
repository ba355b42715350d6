"""Where the samples are: the graph of a batch laid beside the graph of a few of its samples.

Axes whose length changes with the number of samples hold them; a node on which no shape changes holds none. Where samples are
merged with other axes, a probe with the cotangent of one sample alone tells sample-major from time-major.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from hesse.autodiff.recording import node_outputs
from hesse.autodiff.rounding import machine_epsilon
from hesse.rules.layers import SampleAxis

HIDES_PARAMETERS = "CheckpointFunctionBackward"  # of reentrant checkpointing


@dataclass(frozen=True)
class Walk:
    """The nodes of a graph in a fixed order, depth first from its root: the root, and those that lead to parameters.

    So the walk is the same whether the inputs of the model require gradients or not.

    Attributes:
        nodes: the nodes.
        edges: for each node, position and output of what each of its inputs comes from; None for what no parameter leads to,
            and empty for a parameter, past which the walk does not go.
        leaves: the nodes that stand for parameters -> their names.
        slot: which output of the first node the graph is of.
    """

    nodes: tuple[Any, ...]
    edges: tuple[tuple[tuple[int, int] | None, ...], ...]
    leaves: dict[Any, str]
    slot: int = 0

    @classmethod
    def of(cls, root: Tensor, params: dict[str, Tensor]) -> Walk:
        """The graph between a tensor and the parameters."""
        leaves = {get_gradient_edge(leaf).node: name for name, leaf in params.items()}
        found: dict[Any, tuple[Any, ...]] = {}
        pending = [root.grad_fn]
        while pending:
            node = pending.pop()
            if node is None or node in found:
                continue
            found[node] = parents = () if node in leaves else node.next_functions
            pending.extend(parent for parent, _ in reversed(parents))
        if any(not parents and node not in leaves for node, parents in found.items()):
            found = _leading(found, leaves)
        position = {node: i for i, node in enumerate(found)}
        edges = tuple(
            tuple((position[parent], slot) if parent in position else None for parent, slot in parents)
            for parents in found.values()
        )
        return cls(tuple(found), edges, leaves, root.output_nr)

    @property
    def tracked(self) -> dict[int, str]:
        """Positions of the parameters' nodes -> names, of those that are used."""
        return {i: self.leaves[node] for i, node in enumerate(self.nodes) if node in self.leaves}

    def rounding(self) -> float:
        """The coarsest machine epsilon among the floating-point tensors of the graph."""
        kinds = {(meta.dtype, meta.device) for node in self.nodes for meta in node_outputs(node)}
        found = (machine_epsilon(dtype, at) for dtype, at in kinds if dtype.is_floating_point or dtype.is_complex)
        return max(found, default=0.0)

    def signature(self, size: Callable[[int], int] = int) -> tuple[Any, ...]:
        """Names, shapes, edges and options: equal for graphs of the same program on data of the same shapes.

        Args:
            size: applied to every length and whole number among them (`rounded`: equal for shapes that are nearly the same).
        """
        rows: list[Any] = [self.slot, self.edges]
        for node in self.nodes:
            rows.append((node.name(), tuple(tuple(map(size, meta.shape)) for meta in node_outputs(node)), _options(node, size)))
        return tuple(rows)


def _leading(found: dict[Any, tuple[Any, ...]], leaves: Collection[Any]) -> dict[Any, tuple[Any, ...]]:
    """The root, and the nodes from which a leaf can be reached, or that hide what can be reached."""
    users: dict[Any, list[Any]] = {}
    for node, parents in found.items():
        for parent, _ in parents:
            users.setdefault(parent, []).append(node)
    leading, pending = set[Any](), [node for node in found if node in leaves or node.name() == HIDES_PARAMETERS]
    while pending:
        node = pending.pop()
        if node not in leading:
            leading.add(node)
            pending.extend(users.get(node, ()))
    root = next(iter(found))
    return {node: parents for node, parents in found.items() if node in leading or node is root}


def rounded(length: int) -> int:
    """A length, rounded up to a power of two from 9 on."""
    return length if -8 <= length <= 8 else 1 << (length - 1).bit_length() if length > 0 else -rounded(-length)


def _options(node: Any, size: Callable[[int], int]) -> tuple[Any, ...]:
    """What a node keeps besides tensors and floats: axes, flags, sizes, which two runs of one program may differ in."""
    if type(node) not in _option_names:
        names = dir(type(node))
        _option_names[type(node)] = tuple(name for name in names if name.startswith("_saved_") and f"_raw{name}" not in names)
    return tuple(_hashable(getattr(node, name), size) for name in _option_names[type(node)])


_option_names: dict[type, tuple[str, ...]] = {}


def _hashable(value: Any, size: Callable[[int], int]) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_hashable(item, size) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return size(value)
    return value if isinstance(value, (bool, str)) else None


def same_program(first: Walk, second: Walk) -> bool:
    """Whether two graphs differ in nothing but shapes."""
    if len(first.nodes) != len(second.nodes) or first.slot != second.slot:
        return False
    names = all(a.name() == b.name() for a, b in zip(first.nodes, second.nodes, strict=True))
    return names and first.edges == second.edges and first.tracked == second.tracked


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
