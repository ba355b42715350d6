"""Vectors whose leaves are sharded over ranks like a model's parameters, and operators that take and return such vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from hesse.core import tree
from hesse.core.errors import StructureError, UnsupportedError
from hesse.core.fingerprint import sample_hashes
from hesse.core.space import Space, require_full
from hesse.core.tree import Tree
from hesse.core.wrapped import inside, sharded_leaves
from hesse.distributed.average import OverProcesses
from hesse.distributed.sharded_agree import TIMEOUT, asking, full, layout_hashes, require_equal
from hesse.distributed.wire import checked_timeout
from hesse.operators.base import LinearOperator


def gather(vector: Tree, *, timeout: float = TIMEOUT) -> Tree:
    """A tree with every leaf full: `DTensor` s are gathered, other leaves are the same tensors.

    To be called on all ranks of the leaves' meshes together.

    Args:
        vector: a tree; partial sums are added up.
        timeout: seconds to wait for the other ranks at each exchange.

    Returns:
        The tree with plain tensors, detached.

    Raises:
        DistributedError: a leaf that another rank has not, or has in another place, shape, dtype or placement; a rank
            failed, is gone or asks something else.

    Cost: (p - 1) / p of the vector's bytes received by each of p ranks; 8 KiB are exchanged before, to compare the leaves.
    """
    named = tree.named_leaves(vector)
    require_equal(_on_ranks(named), lambda: layout_hashes(named), "The layout of a vector that is gathered", timeout)
    return _full(vector, timeout)


def shard(vector: Tree, like: nn.Module | Tree, *, timeout: float = TIMEOUT) -> Tree:
    """A tree with every leaf sharded over ranks as it is in `like`; undone by `gather`.

    Nothing is sent: each rank keeps its part of the full tensors that it has. That they are the same on all ranks is checked.

    Args:
        vector: a tree of full tensors (batch axes in front allowed), the same on every rank, such as a result that was
            averaged over ranks.
        like: a model, or a tree of `DTensor` s with the paths of `vector`; leaves that are plain there stay plain.
        timeout: seconds to wait for the other ranks.

    Raises:
        StructureError: a path or a shape that `like` does not have. DistributedError: other values on another rank; a rank
            failed, is gone or asks something else.

    Cost: a pass over the vector; 8 KiB are exchanged.
    """
    return _Layout(like, timeout).shard(vector)


def _full(vector: Tree, timeout: float) -> Tree:
    return tree.map_tree(lambda leaf: full(leaf, "gather", timeout), vector)


def _on_ranks(named: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: leaf for name, leaf in named if isinstance(leaf, DTensor)}


class ShardedOperator(LinearOperator):
    """A square operator on trees like a model's parameters that takes and returns them sharded; made by `sharded`.

    Vectors without `DTensor` s go in and come out full, so that questions (`solve`, `trace`, `eigsh`) work as for the operator
    inside, with full vectors on every rank.
    """

    def __init__(self, operator: LinearOperator, layout: _Layout) -> None:
        self.operator, self._layout = operator, layout
        self.in_space, self.out_space = (_ShardedSpace.like(space, layout) for space in (operator.in_space, operator.out_space))
        self.tags, self.mass = operator.tags, operator.mass

    def mv(self, v: Tree) -> Tree:
        """``A v``, sharded like the parameters if `v` has sharded leaves."""
        return self._apply(v, self.operator.mv)

    def mm(self, V: Tree) -> Tree:
        """``A v`` for every ``v`` along the leading axis of the leaves."""
        return self._apply(V, self.operator.mm)

    def _apply(self, v: Tree, product: Callable[[Tree], Tree]) -> Tree:
        is_sharded = any(isinstance(leaf, DTensor) for leaf in tree.leaves(v))
        if not is_sharded:
            return product(v)
        layout = self._layout
        with asking(layout.placed, f"A product of {type(self.operator).__name__} with a sharded vector", layout.timeout):
            return layout.shard(product(_full(v, layout.timeout)))

    def transpose(self) -> LinearOperator:
        """The transpose, which takes and returns sharded vectors, too."""
        return ShardedOperator(self.operator.transpose(), self._layout)


@dataclass(frozen=True, eq=False)
class _ShardedSpace(Space):
    """A space whose vectors may be sharded, which the ranks then check together; flat vectors are full."""

    layout: _Layout | None = None

    @classmethod
    def like(cls, space: Space, layout: _Layout) -> Space:
        """The same space otherwise."""
        return cls(space.names, space.shapes, space.dtypes, space.devices, space.structure, True, layout)

    def check(self, vector: Tree, what: str, batch_ndim: int | None = 0) -> list[Tensor]:
        named = tree.named_leaves(vector)
        placed = _on_ranks(named)
        if not placed or self.layout is None:
            return super().check(vector, what, batch_ndim)
        parts: list[Tensor] = []

        def hashes() -> dict[str, int]:
            parts.extend(super(_ShardedSpace, self).check(vector, what, batch_ndim))
            return layout_hashes(named)

        require_equal({**self.layout.placed, **placed}, hashes, f"The layout of {what}", self.layout.timeout)
        return parts

    def ravel(self, vector: Tree, batch_ndim: int = 0) -> Tensor:
        for name, leaf in tree.named_leaves(vector):
            require_full(leaf, "A vector that is made flat, as solvers do,", f" at '{name}'")
        return super().ravel(vector, batch_ndim)

    def unravel(self, flat: Tensor) -> Tree:
        require_full(flat, "A flat vector")
        return super().unravel(flat)


def sharded(operator: LinearOperator, like: nn.Module | Tree, *, timeout: float | None = None) -> ShardedOperator:
    """An operator whose vectors are sharded over ranks like a model's parameters.

    The operator inside works on full vectors: the memory is that of the unsharded model and a few vectors of its size.

    Args:
        operator: a square operator by the parameters, the same on all ranks: one over the data of all ranks (`spread`), made
            from `gathered(model)`. One of this rank's data alone is found out at its first product.
        like: the model, or its parameters by name; `params=` of the operator may have chosen some of them.
        timeout: seconds to wait for the other ranks at each exchange of a product; None: those of the operator's data
            (`spread`), or 300 where it has none.

    Raises:
        UnsupportedError: an operator that is not square. StructureError: a parameter that `like` does not have, or has in
            another shape; no number of seconds. At a product: DistributedError if the ranks have different results, or vectors
            that lie differently on the ranks; if a rank failed, is gone or asks something else.

    Cost: a product gathers the vector: (p - 1) / p of its bytes received by each of p ranks; 8 KiB are exchanged before, and
    after.
    """
    if operator.in_space != operator.out_space:
        raise UnsupportedError(
            "sharded(operator, like) takes an operator from parameters to parameters.",
            f"{operator}",
            "for products with a parameter Jacobian call gather(v), and shard(J.T @ u, model) once it is summed over ranks",
        )
    over = operator._over_processes()
    known = over.link.timeout if isinstance(over, OverProcesses) else TIMEOUT
    layout = _Layout(like, known if timeout is None else timeout)
    for name, shape in zip(operator.in_space.names, operator.in_space.shapes, strict=True):
        layout.require(name, shape)
    return ShardedOperator(operator, layout)


class _Layout:
    """How each leaf of a tree lies on the ranks, which wait so many seconds for each other."""

    def __init__(self, like: nn.Module | Tree, timeout: float) -> None:
        asked = "Vectors are sharded like a model or a tree of DTensors."
        if isinstance(like, nn.Module):
            module = inside(like, asked)
            placed = dict(sharded_leaves(module))
            leaves: Mapping[str, Any] = {name: placed.get(name, leaf) for name, leaf in module.named_parameters()}
        else:
            leaves = dict(tree.named_leaves(like))
        self.shapes = {name: leaf.shape for name, leaf in leaves.items()}
        self.placed = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, DTensor)}
        for name, leaf in self.placed.items():
            if any(placement.is_partial() for placement in leaf.placements):
                raise UnsupportedError(asked, f"a partial sum at '{name}'", "redistribute it to Shard or Replicate placements")
        with asking(self.placed, asked, timeout):  # where a timeout is refused that is none, and noted for the others
            self.timeout = checked_timeout(timeout)

    def require(self, name: str, shape: torch.Size) -> None:
        """Refuse a leaf of another path or shape."""
        if self.shapes.get(name) != shape:
            found = f"{tuple(self.shapes[name])} there" if name in self.shapes else "no such leaf there"
            raise StructureError(
                "A vector is sharded like leaves of its own paths and shapes.",
                f"'{name}' {tuple(shape)}: {found}",
                "pass the model or the tree that the vector belongs to",
            )

    def shard(self, vector: Tree) -> Tree:
        """The tree, its leaves (batch axes in front allowed) sharded."""
        named = tree.named_leaves(gather(vector, timeout=self.timeout))
        axes = 0

        def hashes() -> dict[str, int]:
            nonlocal axes
            odd = next((name for name, leaf in named if not isinstance(leaf, Tensor)), None if named else "")
            if odd is not None:
                found = f"no tensor at '{odd}'" if named else "no leaves"
                raise StructureError("A vector that is sharded is a tree of tensors.", found, "pass one tensor a parameter")
            axes = max(named[0][1].ndim - len(self.shapes.get(named[0][0], ())), 0)
            for name, leaf in named:
                self.require(name, leaf.shape[axes:])
            return {name: int(sample_hashes(leaf.unsqueeze(0))) for name, leaf in named}

        require_equal(self.placed, hashes, "A vector that is sharded (average over the data of all ranks first)", self.timeout)
        return tree.flatten(vector)[1].unflatten(self._place(name, leaf, axes) for name, leaf in named)

    def _place(self, name: str, leaf: Tensor, axes: int) -> Tensor:
        if name not in self.placed:
            return leaf
        like = self.placed[name]
        placements = [_moved(placement, axes) for placement in like.placements] if axes else like.placements
        return distribute_tensor(leaf.detach(), like.device_mesh, placements, src_data_rank=None)


def _moved(placement: Any, axes: int) -> Any:
    """The placement of a tensor with so many axes more in front."""
    if not placement.is_shard():
        return placement
    if type(placement) is Shard:
        return Shard(placement.dim + axes)
    asked = "Blocks of vectors are sharded by Shard and Replicate placements."
    raise UnsupportedError(asked, f"{placement}", "apply the operator to one vector at a time")
