"""An operator under check: its products, guarded against each other, and vectors to ask it with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hesse.check.operators.evidence import wide
from hesse.core import tree
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators import LinearOperator

BLOCK = 3  # vectors in a block


class Probe:
    """An operator with a source of random vectors.

    Every product gets copies of its vectors, its result is copied, and the modes of torch are put back, so that an operator
    that breaks one law (it writes into its input, it re-uses its result) does not seem to break the others.

    Args:
        operator: the operator.
        transpose: its transpose; None where it has none.
        generator: of the vectors.
        thorough: whether more vectors and sizes are tried, and the transpose as an operator of its own.

    Attributes:
        A, T, generator, thorough: the same.
        products: how often a vector was multiplied.
    """

    def __init__(
        self, operator: LinearOperator, transpose: LinearOperator | None, generator: torch.Generator, *, thorough: bool = False
    ) -> None:
        self.A, self.T, self.generator, self.thorough = operator, transpose, generator, thorough
        self.products = 0

    @property
    def sides(self) -> Iterator[tuple[str, LinearOperator]]:
        """The operator and, where there is one, its transpose, with their names."""
        yield "A", self.A
        if self.T is not None:
            yield "A.T", self.T

    @property
    def chosen(self) -> Iterator[tuple[str, LinearOperator]]:
        """The operator alone, or both sides where the check is thorough."""
        yield from self.sides if self.thorough else (("A", self.A),)

    @property
    def most(self) -> int:
        """Up to this dimension matrices are built column by column."""
        return 256 if self.thorough else 32

    def vector(self, space: Space, *batch: int) -> Tree:
        """A random vector (with batch axes in front)."""
        return space.normal(*batch, generator=self.generator)

    def mv(self, B: LinearOperator, v: Tree) -> Tree:
        """``B v``: a copy of the result, made from a copy of the vector."""
        self.products += 1
        with modes_kept():
            return copied(B.mv(copied(v)))

    def mm(self, B: LinearOperator, V: Tree) -> Tree:
        """``B V``, likewise."""
        parts = tree.leaves(V)
        self.products += parts[0].shape[0] if parts else 0
        with modes_kept():
            return copied(B.mm(copied(V)))

    def flat(self, B: LinearOperator, v: Tree) -> Tensor:
        """``B v`` as a flat vector in float64 or complex128."""
        return wide(B.out_space, self.mv(B, v))

    def stacked(self, B: LinearOperator, V: Tree) -> Tensor:
        """``[k, out]``: the products with the vectors of a block, one by one."""
        rows = [self.flat(B, v) for v in columns(V)]
        return torch.stack(rows) if rows else wide(B.out_space, B.out_space.zeros(0), 1)

    def matrix(self, B: LinearOperator) -> Tensor:
        """``[out, in]``, column by column."""
        eye = torch.eye(B.in_space.dim, dtype=B.in_space.dtype, device=B.in_space.device)
        return self.stacked(B, B.in_space.unravel(eye)).mT


def columns(block: Tree) -> list[Tree]:
    """The vectors of a block: ``block[k]`` of every leaf.

    Args:
        block: a tree whose leaves have one axis in front.
    """
    parts = tree.leaves(block)
    return [tree.map_tree(lambda leaf, k=k: leaf[k], block) for k in range(parts[0].shape[0] if parts else 0)]


def copied(vector: Tree) -> Tree:
    """A tree of copies of its tensors, strides kept.

    Args:
        vector: any tree.
    """
    return tree.map_tree(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, vector)


@contextmanager
def modes_kept() -> Iterator[None]:
    """Put back the grad mode and the default dtype."""
    grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
