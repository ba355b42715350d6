"""A batch that does not fit into the memory budget: its matrix as the average over slices of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.model import Model, sample_count
from hesse.core import random
from hesse.core.chunked import is_allocation_failure
from hesse.core.errors import HesseError, MemoryBudgetError, MixedSamplesError
from hesse.core.memory import Budget, given_budget, too_small
from hesse.core.tree import Tree
from hesse.curvature.slicing import SLICE, Slicing, rows_of, sliced, tensors_in
from hesse.linalg.products import mm_within, work_dtype
from hesse.operators.average import Average
from hesse.operators.base import LinearOperator

Make = Callable[[Any], LinearOperator]
_TRIED = 2  # samples in each of the two slices that have to add up


class SplitBatch(Average):
    """The matrix of one batch as the average over slices of it, each of which is worked on alone.

    Graphs of slices are kept as for a data set. Where an allocation fails the slices are halved and the pass begins anew.

    Args:
        make: turns a slice into its matrix.
        batch: what is sliced.
        at_once: samples of a slice, at most.
        memory: the budget.
        asked: what for, in error messages.

    Attributes:
        at_once: as given; halved where memory fails.
    """

    def __init__(self, make: Make, batch: Any, at_once: int, memory: Budget | None, asked: str) -> None:
        self.batch, self.at_once, self._make, self._asked, self._memory = batch, at_once, make, asked, memory
        self.count = sample_count(batch, None, asked)
        while True:
            try:
                super().__init__(make, sliced(batch, self.count, self.at_once), memory=memory)
                return
            except (MemoryError, RuntimeError) as error:
                failure = error.with_traceback(None)
            self._halve(failure)

    def _halve(self, failure: Exception) -> None:
        if not is_allocation_failure(failure) or isinstance(failure, HesseError):
            raise failure
        if self.at_once == 1:
            budget = given_budget(self._memory, tensors_in(self.batch)[0].device) or 0
            raise too_small(budget, budget + 1, self._asked) from failure
        self.at_once = -(-self.at_once // 2)

    def combine(self, quantity: Callable[[LinearOperator], Tree]) -> Tree:
        """As `Average.combine`; begins anew with smaller slices where memory fails."""
        while True:
            try:
                return super().combine(quantity)
            except (MemoryError, RuntimeError) as error:
                failure = error.with_traceback(None)
            self._halve(failure)
            self.data = self.data.of(sliced(self.batch, self.count, self.at_once))

    def mm(self, V: Tree) -> Tree:
        budget = given_budget(self._memory, self.in_space.device)
        part = None if budget is None else max(int(SLICE * budget), 1)
        return self.combine(lambda operator: mm_within(operator, V, part))


def split_if_needed(make: Make, model: Model, memory: Budget | None, asked: str) -> Make:
    """`make` for batches of any size: those too large for the budget become a `SplitBatch`.

    Args:
        make: turns a batch into its matrix.
        model: what it runs.
        memory: the budget; None: that in force. Without one, batches are split where making them runs out of memory.
        asked: what for, in error messages.

    Raises:
        MemoryBudgetError: from the result: two samples do not fit, or the batch does not and its samples influence each other.
    """

    def work(piece: Any) -> None:
        operator = make(piece)
        operator.mv(_random_vector(operator))

    slicing = Slicing(model, work, memory, asked)

    def made(batch: Any) -> LinearOperator:
        at_once = slicing.at_once(batch)
        if at_once is None:
            try:
                operator = make(batch)
                operator.memory = memory  # pyright: ignore[reportAttributeAccessIssue]
                return operator
            except (MemoryError, RuntimeError) as error:
                count = sample_count(batch, None, asked)
                if not is_allocation_failure(error) or isinstance(error, HesseError) or count < 2 * _TRIED:
                    raise
                at_once = count // 2
        budget = given_budget(memory, model.device)
        least = slicing.needed(batch) or (budget or 0) + 1
        _require_that_slices_add_up(make, batch, (budget or 0, least), asked)
        return SplitBatch(make, batch, at_once, memory, asked)

    return made


def _random_vector(operator: LinearOperator) -> Tree:
    return operator.in_space.normal(generator=random.make_generator(0, operator.in_space.device))


def _require_that_slices_add_up(make: Make, batch: Any, bytes_: tuple[int, int], asked: str) -> None:
    """Compare a random product with the matrix of a few samples with that of their halves.

    Raises:
        MemoryBudgetError: they differ: samples influence each other. `bytes_`: the budget, and what the whole batch takes.

    Cost: a product on eight samples.
    """
    count = min(2 * _TRIED, sample_count(batch, None, asked))
    whole = make(rows_of(batch, 0, count))
    halves = [make(rows_of(batch, 0, count // 2)), make(rows_of(batch, count // 2, count))]
    try:
        added_up = _add_up(whole, halves, _random_vector(whole))
    except MixedSamplesError:  # a loss that is neither the sum nor the mean of its samples
        added_up = False
    if not added_up:
        raise MemoryBudgetError(
            asked,
            "samples that influence each other (or a loss that does not add up), so that there can be no slices of the batch",
            f"pass memory={bytes_[1]} or more, for the whole batch at once",
            bytes_[1],
        )


def _add_up(whole: LinearOperator, halves: list[LinearOperator], v: Tree) -> bool:
    additive = bool(getattr(whole, "additive", False))
    masses = [1.0 if additive else operator.mass for operator in halves]
    found = [_flat(operator, v, mass) for operator, mass in zip(halves, masses, strict=True) if mass]
    if not found:
        return True
    difference = sum(found, -_flat(whole, v, 1.0 if additive else whole.mass))
    size = sum(torch.linalg.vector_norm(part) for part in found)
    eps = max(torch.finfo(dtype).eps for dtype in whole.in_space.dtypes)
    return bool(torch.linalg.vector_norm(difference) <= eps**0.5 * size)


def _flat(operator: LinearOperator, v: Tree, mass: float) -> Tensor:
    product = operator.out_space.ravel(operator.mv(v)).detach()
    return product.to(work_dtype(product.dtype)) * mass
