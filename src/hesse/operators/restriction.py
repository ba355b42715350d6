"""The part of an operator between some leaves, and the operator that keeps only such parts along its diagonal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch

from hesse.core import tree
from hesse.core.errors import StructureError
from hesse.core.names import layer_of
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator, Tag
from hesse.operators.blocks import BlockDiagonal

Names = Iterable[str] | Callable[[str], bool]
Grouping = Literal["parameter", "layer"] | Callable[[str], str] | Mapping[str, Iterable[str]]


class Restriction(LinearOperator):
    """The part of an operator from some leaves to some leaves: zeros elsewhere go in, and what comes out elsewhere is left out.

    Args:
        operator: the whole.
        in_space: the leaves to take, by the same paths as in its `in_space`, in any order and nesting (`part_of`).
        out_space: the leaves to give, likewise; by default `in_space`.
    """

    def __init__(self, operator: LinearOperator, in_space: Space, out_space: Space | None = None) -> None:
        self.operator, self.in_space, self.out_space = operator, in_space, in_space if out_space is None else out_space
        self.inputs = _places(operator.in_space, self.in_space.names)
        self.outputs = _places(operator.out_space, self.out_space.names)
        square = self.inputs == self.outputs and operator.in_space == operator.out_space
        self.tags = operator.tags if square else frozenset[Tag]()

    @property
    def mass(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the operator."""
        return self.operator.mass

    @property
    def rearranges(self) -> bool:
        """Whether all leaves are there, at most in another order, the same on both sides."""
        return self.inputs == self.outputs and len(self.inputs) == len(self.operator.in_space.names)

    def mv(self, v: Tree) -> Tree:
        return self._pick(self.operator.mv(self._embed(v)))

    def mm(self, V: Tree) -> Tree:
        return self._pick(self.operator.mm(self._embed(V, tree.leaves(V)[0].shape[0])))

    def _embed(self, v: Tree, *batch: int) -> Tree:
        space, given = self.operator.in_space, dict(zip(self.inputs, tree.leaves(v), strict=True))
        return space.rebuild(
            [
                given[place] if place in given else torch.zeros((*batch, *shape), dtype=dtype, device=device)
                for place, (shape, dtype, device) in enumerate(zip(space.shapes, space.dtypes, space.devices, strict=True))
            ]
        )

    def _pick(self, w: Tree) -> Tree:
        leaves = tree.leaves(w)
        return self.out_space.rebuild([leaves[place] for place in self.outputs])

    def transpose(self) -> LinearOperator:
        return Restriction(self.operator.T, self.out_space, self.in_space)

    def __repr__(self) -> str:
        return f"Restriction({self.shape[0]} x {self.shape[1]} of {self.operator!r})"


class DiagonalBlocks(BlockDiagonal):
    """What an operator does within each of some groups of leaves; made by `block_diagonal`.

    Args:
        whole: the operator, from a space to itself.
        groups: name -> consecutive leaves, all leaves in order.
    """

    def __init__(self, whole: LinearOperator, groups: Mapping[str, Sequence[str]]) -> None:
        self.whole, self.groups = whole, {name: tuple(leaves) for name, leaves in groups.items()}
        parts = {name: part_of(whole.in_space, leaves) for name, leaves in self.groups.items()}
        super().__init__({name: Restriction(whole, space) for name, space in parts.items()}, whole.in_space)

    @property
    def mass(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the operator."""
        return self.whole.mass

    def transpose(self) -> LinearOperator:
        return DiagonalBlocks(self.whole.T, self.groups)

    def __repr__(self) -> str:
        rows = "".join(f"\n  {name}: {list(b.shape)}" for name, b in self.blocks.items())
        return f"DiagonalBlocks({self.shape[0]} x {self.shape[1]} of {self.whole!r}){rows}"


def restrict(A: LinearOperator, names: Names, *, out: Names | None = None) -> LinearOperator:
    """The part of an operator on some leaves: a layer's own Hessian, the Jacobian by some parameters.

    Args:
        A: the operator.
        names: paths of leaves of ``A.in_space``, or a predicate of the path.
        out: the same for ``A.out_space``; by default the same leaves where `A` maps a space to itself, else all.

    Returns:
        An operator on dicts ``{path: leaf}`` of those leaves, in the order of the space; it keeps symmetry and definiteness
        where the leaves are the same on both sides. For the rows and columns of the result, use the names of its spaces.

    Raises:
        StructureError: no such leaf, or none at all.

    Cost: a product is one product with `A`; a block shares one block product.
    """
    inputs = _chosen(A.in_space, names)
    default = inputs if A.in_space == A.out_space else A.out_space.names
    outputs = default if out is None else _chosen(A.out_space, out)
    whole = A.operator if isinstance(A, Restriction) else A
    return Restriction(whole, part_of(A.in_space, inputs), part_of(A.out_space, outputs))


def part_of(space: Space, names: Sequence[str]) -> Space:
    """The space of dicts ``{path: leaf}`` of some leaves of a space, in the order of the names."""
    at = _places(space, names)
    shapes, dtypes = tuple(space.shapes[k] for k in at), tuple(space.dtypes[k] for k in at)
    return Space(tuple(names), shapes, dtypes, tuple(space.devices[k] for k in at), tree.flatten(dict.fromkeys(names, 0.0))[1])


def block_diagonal(A: LinearOperator, by: Grouping = "layer") -> LinearOperator:
    """What an operator does within groups of leaves, everything between groups set to zero.

    Args:
        A: an operator from a space to itself.
        by: ``"parameter"``: every leaf a group; ``"layer"``: leaves whose paths agree before the last dot; a function from a
            path to its group's name; or a dict ``{group: paths}`` that has every leaf once.

    Returns:
        An operator on the space of `A`, symmetric and definite where `A` is. Questions (`solve`, `logdet`, `dense`) are
        answered block by block; its `blocks` (of the operator inside, where groups are not made of neighbors) are operators.

    Raises:
        StructureError: not a map of a space to itself, no such grouping, or a leaf in no group or in two.

    Cost: a product is one product with `A` for every group.
    """
    if A.in_space != A.out_space:
        raise StructureError(
            "block_diagonal needs an operator from a space to itself.", f"{A}", "use A.T @ A, or restrict(A, names, out=...)"
        )
    groups = _groups(A.in_space.names, by)
    order = [name for leaves in groups.values() for name in leaves]
    if tuple(order) == A.in_space.names:
        return DiagonalBlocks(A, groups)
    return Restriction(DiagonalBlocks(Restriction(A, part_of(A.in_space, order)), groups), A.in_space)


def _places(space: Space, names: Sequence[str]) -> tuple[int, ...]:
    at = {name: place for place, name in enumerate(space.names)}
    return tuple(at[name] for name in names)


def _chosen(space: Space, names: Names) -> list[str]:
    names = [names] if isinstance(names, str) else names
    wanted = {name for name in space.names if names(name)} if callable(names) else set(names)
    unknown = sorted(wanted - set(space.names))
    if unknown or not wanted:
        raise StructureError(
            "restrict takes the paths of leaves of the operator's space.",
            f"no leaf {unknown[0]!r}" if unknown else "none chosen",
            f"some of {list(space.names)[:8]}",
        )
    return [name for name in space.names if name in wanted]


def _groups(names: Sequence[str], by: Grouping) -> dict[str, list[str]]:
    if isinstance(by, Mapping):
        groups = {group: [leaves] if isinstance(leaves, str) else list(leaves) for group, leaves in by.items()}
        listed = [name for leaves in groups.values() for name in leaves]
        wrong = [name for name in dict.fromkeys([*names, *listed]) if listed.count(name) != 1 or name not in names]
        if wrong:
            raise StructureError(
                "block_diagonal needs every leaf in exactly one group.",
                f"{wrong[0]!r} in {listed.count(wrong[0])} groups" + ("" if wrong[0] in names else ", and not in the space"),
                f"a dict of groups of {list(names)[:8]}",
            )
        return {group: leaves for group, leaves in groups.items() if leaves}
    group_of = {"parameter": lambda name: name, "layer": layer_of}.get(by) if isinstance(by, str) else by
    if not callable(group_of):
        raise StructureError(
            "block_diagonal knows by='parameter' and by='layer'.", repr(by), "pass one of them, a function or a dict"
        )
    groups = {}
    for name in names:
        groups.setdefault(group_of(name), []).append(name)
    return groups
