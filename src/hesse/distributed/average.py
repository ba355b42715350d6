"""The average of one operator a batch over the batches of several processes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import islice

import torch
from torch import Tensor

from hesse.core import tree
from hesse.core.errors import DataError, MemoryBudgetError, UnsupportedError
from hesse.core.fingerprint import sample_hashes
from hesse.core.tree import Tree
from hesse.distributed.buffers import Layout
from hesse.distributed.facts import Facts
from hesse.distributed.link import Link, Part
from hesse.linalg.diagonal_rules import costly_diagonal_rule, diagonal_rule, exact_diagonal
from hesse.operators import Average, LinearOperator, Tag
from hesse.operators.weighted_sum import WeightedSum

_HASH_BITS = 52


class OverProcesses(LinearOperator):
    """``sum_b mass_b A_b / sum_b mass_b`` over the batches of all processes (``sum_b A_b`` where losses add up).

    Every process holds the operator of its own batches, and asks for the same products in the same order; each gets the whole
    result. Products with vectors that differ from process to process are refused.

    Args:
        link: to the other processes.
        own: the average over this process's batches, or, where it has none, what the others told of theirs.
        name: what made it.

    Cost: a product: one pass over this process's data, and an all-reduce of the product's numbers.
    """

    def __init__(self, link: Link, own: Average | Facts, name: str) -> None:
        self.in_space, self.out_space, self.tags = own.in_space, own.out_space, own.tags
        self.link, self.additive, self.name = link, own.additive, name
        self.local = own if isinstance(own, Average) else None
        self._mass: float | None = 1.0 if own.additive else None

    @property
    def mass(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The normalizer of all data; costs a pass over them the first time it is asked for, on all processes."""
        if self._mass is None:
            empty = Layout((), (), torch.device("cpu"))
            _, self._mass = self.link.total(
                f"The mass of {self.name}", empty, lambda: Part([], self.local.mass if self.local else 0.0)
            )
        return self._mass

    def _asking(self, what: str) -> AbstractContextManager[None]:
        return self.link.asking(f"{what} with {self.name}")

    def mv(self, v: Tree) -> Tree:
        layout = Layout.of_space(self.out_space)
        parts = self._combined(f"A product with {self.name}", layout, lambda: v, lambda operator: operator.mv(v))
        return self._rebuilt(parts)

    def mm(self, V: Tree) -> Tree:
        leaves = [leaf for leaf in tree.leaves(V) if isinstance(leaf, Tensor) and leaf.ndim]
        count = leaves[0].shape[0] if leaves else 0
        layout = Layout.of_space(self.out_space, count)
        parts = self._combined(
            f"A product of {count} vectors with {self.name}", layout, lambda: V, lambda operator: operator.mm(V)
        )
        return self._rebuilt(parts)

    @property
    def gradient(self) -> Tree:
        """The gradient of the loss over all data, where the operators of the batches have one (`loss_hessian`).

        Cost: one pass over this process's data, and an all-reduce, on all processes.
        """
        layout = Layout.of_space(self.in_space)
        parts = self.combine("The gradient", layout, lambda operator: operator.gradient)  # pyright: ignore[reportAttributeAccessIssue]
        return self.in_space.rebuild([part.to(device) for part, device in zip(parts, self.in_space.devices, strict=True)])

    def combine(self, what: str, layout: Layout, quantity: Callable[[LinearOperator], Tree]) -> list[Tensor]:
        """A quantity that is linear in the operator, averaged over all batches as the operator is.

        Args:
            what: how errors name it.
            layout: shapes and dtypes of its leaves, known to all processes.
            quantity: of one batch's operator.

        Raises:
            DistributedError: another process failed, is silent, or asks something else. DataError: nothing counts.
        """
        return self._combined(f"{what} of {self.name}", layout, tuple, quantity)

    def agree(self, what: str, ask: Callable[[LinearOperator], bool]) -> bool:
        """Whether it holds for the operator of the first batch of every process."""

        def own() -> bool:
            return self.local is None or all(ask(first) for first in islice(self.local.operators(), 1))

        return all(self.link.exchange(f"{what} of {self.name}", own))

    def transpose(self) -> LinearOperator:
        transposed = copy.copy(self)
        transposed.in_space, transposed.out_space = self.out_space, self.in_space
        transposed.local = None if self.local is None else _transposed(self.local)
        if Tag.SYMMETRIC not in self.tags:
            transposed.name = self.name.removesuffix(".T") if self.name.endswith(".T") else f"{self.name}.T"
        return transposed

    def _combined(
        self, what: str, layout: Layout, given: Callable[[], Tree], quantity: Callable[[LinearOperator], Tree]
    ) -> list[Tensor]:
        """The sum over the processes of this process's part, divided by the mass."""

        def work() -> Part:
            hashed = vector_hash(given())
            parts, mass = self._own(quantity)
            if parts is not None and any(part.requires_grad for part in parts):
                raise UnsupportedError(
                    "Products over several processes have no derivative.", "a vector that requires grad", "detach it"
                )
            return Part(parts, mass, hashed)

        sums, mass = self.link.total(what, layout, work)
        if mass == 0:
            raise DataError("An average over data needs something that counts.", "a total mass of 0", "check the targets")
        if not self.additive:
            self._mass = mass
            sums = [part / mass for part in sums]
        return [part.to(dtype) for part, dtype in zip(sums, layout.dtypes, strict=True)]

    def _own(self, quantity: Callable[[LinearOperator], Tree]) -> tuple[list[Tensor] | None, float]:
        """The weighted sum over this process's batches, and their mass; where it does not fit, without kept operators."""
        try:
            return self._summed(quantity)
        except MemoryBudgetError:
            if self.local is None or not self.local.data.forget():
                raise
        return self._summed(quantity)

    def _summed(self, quantity: Callable[[LinearOperator], Tree]) -> tuple[list[Tensor] | None, float]:
        if self.local is None:
            return None, 0.0
        sums, mass = WeightedSum(), 0.0
        try:
            for part, weight in self.local.parts(quantity):
                sums.add(tree.leaves(part), weight)
                mass += weight
        except DataError:
            if sums.total is not None or any(operator.mass for operator in self.local.operators()):
                raise
        return sums.total, mass

    def _rebuilt(self, parts: list[Tensor]) -> Tree:
        devices = self.out_space.devices
        return self.out_space.rebuild([part.to(device) for part, device in zip(parts, devices, strict=True)])

    def __repr__(self) -> str:
        tags = ", ".join(sorted(tag.value for tag in self.tags))
        shape = f"{self.shape[0]} x {self.shape[1]}"
        own = "no batches here" if self.local is None else repr(self.local)
        return f"OverProcesses({shape}{', ' if tags else ''}{tags}; rank {self.link.rank} of {self.link.ranks}: {own})"


def _transposed(local: Average) -> Average:
    transposed = local.transpose()
    assert isinstance(transposed, Average)
    return transposed


def vector_hash(vector: Tree) -> int:
    """A hash of a tree of tensors, below 2^52; 0 for a tree without leaves."""
    leaves = [torch.as_tensor(leaf).detach().unsqueeze(0) for leaf in tree.leaves(vector)]
    return int(sample_hashes(leaves)[0]) % 2**_HASH_BITS if leaves else 0


@diagonal_rule.register(OverProcesses)
def _diagonal(A: OverProcesses) -> Tensor | None:
    return _by_batch(A, "Whether the diagonal is known", lambda first: diagonal_rule(first) is not None)


@costly_diagonal_rule.register(OverProcesses)
def _costly_diagonal(A: OverProcesses) -> Tensor | None:
    return _by_batch(A, "Whether the diagonal is known at a price", lambda first: costly_diagonal_rule(first) is not None)


def _by_batch(A: OverProcesses, what: str, ask: Callable[[LinearOperator], bool]) -> Tensor | None:
    if not A.agree(what, ask):
        return None
    layout = Layout(((A.shape[0],),), (A.out_space.dtype,), A.out_space.device)
    return A.combine("The diagonal", layout, lambda operator: exact_diagonal(operator))[0]
