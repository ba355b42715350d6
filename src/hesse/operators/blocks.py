"""Block-diagonal operators over groups of leaves."""

from __future__ import annotations

from collections.abc import Mapping

from hesse.core import tree
from hesse.core.errors import StructureError
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator, Tag


class BlockDiagonal(LinearOperator):
    """Operators side by side, each on some consecutive leaves of a vector.

    Args:
        blocks: name -> operator. Without spaces, block ``name`` maps the subtree ``v[name]`` and writes the subtree ``name`` of
            the result: vectors are dicts with the same names, in this order.
        in_space: the space of the vectors, whose leaves the blocks take in order, as many as each has: the parameters of a
            model, say, where every layer is a block.
        out_space: likewise for the results; by default `in_space`, if that is given.

    Raises:
        StructureError: the leaves of the blocks, one after another, do not have the shapes of the space's.
    """

    def __init__(
        self, blocks: Mapping[str, LinearOperator], in_space: Space | None = None, out_space: Space | None = None
    ) -> None:
        self.blocks = dict(blocks)
        self.in_space = _joined({name: b.in_space for name, b in self.blocks.items()}, in_space)
        self.out_space = _joined({name: b.out_space for name, b in self.blocks.items()}, out_space or in_space)
        tags = [block.tags for block in self.blocks.values()]
        self.tags = frozenset.intersection(*tags) if tags else frozenset(Tag)

    def mv(self, v: Tree) -> Tree:
        return self._apply(v, False)

    def mm(self, V: Tree) -> Tree:
        return self._apply(V, True)

    def _apply(self, v: Tree, many: bool) -> Tree:
        leaves, result, start = tree.leaves(v), [], 0
        for block in self.blocks.values():
            stop = start + len(block.in_space.names)
            part = block.in_space.rebuild(leaves[start:stop])
            result += tree.leaves(block.mm(part) if many else block.mv(part))
            start = stop
        return self.out_space.rebuild(result)

    def transpose(self) -> LinearOperator:
        return BlockDiagonal({name: block.T for name, block in self.blocks.items()}, self.out_space, self.in_space)

    def __repr__(self) -> str:
        rows = "".join(f"\n  {name}: {block!r}" for name, block in self.blocks.items())
        return f"{type(self).__name__}({self.shape[0]} x {self.shape[1]}){rows}"


def _joined(spaces: dict[str, Space], given: Space | None) -> Space:
    """The given space, if the leaves of the blocks are its leaves; else that of dicts with a subtree a block."""
    if given is None:
        return Space.of({name: space.zeros() for name, space in spaces.items()})
    shapes = [(name, tuple(shape)) for name, space in spaces.items() for shape in space.shapes]
    wanted = [tuple(shape) for shape in given.shapes]
    if [shape for _, shape in shapes] != wanted:
        found = next((f"{a} in block {n!r} for {b}" for (n, a), b in zip(shapes, wanted, strict=False) if a != b), "")
        raise StructureError(
            "The blocks of a block-diagonal operator take the leaves of its space in order.",
            found or f"{len(shapes)} leaves in all blocks for the {len(wanted)} of {given}",
            "pass the blocks in the order of the leaves, each leaf in one block, or no space for dicts of subtrees",
        )
    return given
