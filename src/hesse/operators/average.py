"""The average of one operator a batch over a data set, each weighted by its own normalizing mass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from hesse.core import tree
from hesse.core.errors import DataError, OneShotDataError, StructureError
from hesse.core.progress import track
from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator, Tag


def refuse_one_shot(data: Any, asked: str) -> None:
    """Raise `OneShotDataError` if `data` can be read only once."""
    if isinstance(data, Iterator):
        raise OneShotDataError(
            asked, f"a one-shot {type(data).__name__}", "pass list(data), or a DataLoader, which can be read again"
        )


class Average(LinearOperator):
    """``sum_b mass_b A_b / sum_b mass_b`` over the batches of a data set (``sum_b A_b`` if `additive`).

    For losses with ``reduction="mean"`` this *is* the full-batch operator, however uneven the batches and whatever the
    class weights or ignored targets, since each batch weighs as much as its loss's own normalizer.

    Args:
        make: turns a batch into an operator; called for each batch at each product.
        batches: an iterable of batches that can be read again and again.
        additive: add instead of average (losses with ``reduction="sum"``); None: as the first operator's attribute `additive`
            says, where it has one.

    Cost: one pass over the data a product; a block of vectors (`mm`) shares one pass.
    """

    def __init__(self, make: Callable[[Any], LinearOperator], batches: Iterable[Any], *, additive: bool | None = None) -> None:
        refuse_one_shot(batches, "An operator over a data set reads the data once for every product.")
        self.make, self.batches, self._flipped = make, batches, False
        first = next(iter(self.operators()), None)
        if first is None:
            raise DataError("An operator over a data set needs data.", "no batch", "pass at least one batch")
        self.in_space, self.out_space, self.tags = first.in_space, first.out_space, first.tags
        self.additive = bool(getattr(first, "additive", False)) if additive is None else additive
        self._mass: float | None = 1.0 if self.additive else None

    @property
    def mass(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The normalizer of the whole data set; costs a pass over the data the first time it is asked for."""
        if self._mass is None:
            self._mass = sum(operator.mass for operator in self.operators())
        return self._mass

    def operators(self) -> Iterator[LinearOperator]:
        """The operator of each batch, made as it is reached."""
        return (self.make(batch) for batch in self.batches)

    def _require_alike(self, operator: LinearOperator) -> None:
        if (operator.in_space, operator.out_space) != (self.in_space, self.out_space):
            raise StructureError(
                "The batches of an average need operators between the same spaces.",
                f"{operator.in_space} to {operator.out_space}, where the first batch had {self.in_space} to {self.out_space}",
                "make operators whose spaces do not depend on the batch",
            )
        if not self.tags <= operator.tags:
            missing = ", ".join(sorted(tag.value for tag in self.tags - operator.tags))
            raise StructureError(
                "The batches of an average need operators with the tags of the first.",
                f"a batch that is not {missing}",
                "make operators whose tags do not depend on the batch",
            )

    def combine(self, quantity: Callable[[LinearOperator], Tree]) -> Tree:
        """A quantity that is linear in the operator (a product, a diagonal), averaged over the batches as the operator is.

        Cost: one pass over the data.
        """
        total, mass = None, 0.0
        count = len(self.batches) if hasattr(self.batches, "__len__") else None  # pyright: ignore[reportArgumentType]
        for operator in track(self.operators(), "batches", count):
            weight = 1.0 if self.additive else operator.mass
            if weight == 0 and total is not None:  # nothing in this batch counts (all targets ignored): 0/0 stays out
                continue
            operator = operator.T if self._flipped else operator  # after its mass was read: .T need not keep it
            self._require_alike(operator)
            part = tree.map_tree(lambda leaf, w=weight: leaf * w if w else torch.zeros_like(leaf), quantity(operator))
            total = part if total is None else tree.map_tree(lambda a, b: a + b, total, part)
            mass += weight
        if total is None:
            raise DataError("An operator over a data set needs data.", "no batch in this pass", "pass a list of batches")
        if self.additive:
            return total
        if mass == 0:
            raise DataError("An average over data needs something that counts.", "a total mass of 0", "check the targets")
        self._mass = mass
        return tree.map_tree(lambda leaf: leaf / mass, total)

    def mv(self, v: Tree) -> Tree:
        return self.combine(lambda operator: operator.mv(v))

    def mm(self, V: Tree) -> Tree:
        return self.combine(lambda operator: operator.mm(V))

    def transpose(self) -> LinearOperator:
        transposed = copy.copy(self)
        transposed._flipped = not self._flipped
        transposed.in_space, transposed.out_space = self.out_space, self.in_space
        return transposed

    def __repr__(self) -> str:
        name = "Sum" if self.additive else "Average"
        tags = ", ".join(sorted(tag.value for tag in self.tags if isinstance(tag, Tag)))
        return f"{name}({self.shape[0]} x {self.shape[1]} over batches{', ' if tags else ''}{tags})"


def average(make: Callable[[Any], LinearOperator], batches: Iterable[Any], *, additive: bool | None = None) -> Average:
    """The average of one operator a batch over a data set, weighted by `mass`: ``sum_b mass_b A_b / sum_b mass_b``.

    Args:
        make: turns a batch into an operator, ``lambda batch: hesse.ggn(model, loss, batch)``; called at each product.
        batches: an iterable of batches that can be read again and again (a list, a DataLoader).
        additive: add instead of average; by default as the operators say (losses with ``reduction="sum"`` add up).

    Returns:
        The operator of the whole data set: for losses with ``reduction="mean"`` it equals the full-batch operator, however
        uneven the batches and whatever the class weights or ignored targets.

    Raises:
        OneShotDataError: a generator. DataError: no batch.

    Cost: one pass over the data a product; a block of vectors shares one pass.
    """
    return Average(make, batches, additive=additive)
