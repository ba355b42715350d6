"""Block-diagonal operators over groups of leaves."""

from __future__ import annotations

from collections.abc import Mapping

from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator, Tag


class BlockDiagonal(LinearOperator):
    """Operators side by side: block ``name`` maps the subtree ``v[name]`` and writes the subtree ``name`` of the result.

    Args:
        blocks: name -> operator; vectors are dicts with the same names, in this order.
    """

    def __init__(self, blocks: Mapping[str, LinearOperator]) -> None:
        from hesse.core.space import Space

        self.blocks = dict(blocks)
        self.in_space = Space.of({name: block.in_space.zeros() for name, block in self.blocks.items()})
        self.out_space = Space.of({name: block.out_space.zeros() for name, block in self.blocks.items()})
        tags = [block.tags for block in self.blocks.values()]
        self.tags = frozenset.intersection(*tags) if tags else frozenset(Tag)

    def mv(self, v: Tree) -> Tree:
        return {name: block.mv(v[name]) for name, block in self.blocks.items()}

    def mm(self, V: Tree) -> Tree:
        return {name: block.mm(V[name]) for name, block in self.blocks.items()}

    def transpose(self) -> LinearOperator:
        return BlockDiagonal({name: block.T for name, block in self.blocks.items()})

    def __repr__(self) -> str:
        rows = "".join(f"\n  {name}: {block!r}" for name, block in self.blocks.items())
        return f"BlockDiagonal({self.shape[0]} x {self.shape[1]}){rows}"
