"""A batch that does not fit into the memory budget: its matrix as the average over slices of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.model import Model, sample_count, split_batch
from hesse.core.chunked import is_allocation_failure
from hesse.core.errors import DataError, HesseError, MemoryBudgetError
from hesse.core.memory import Budget, given_budget, too_small
from hesse.core.tree import Tree
from hesse.core.watch import Watch
from hesse.curvature.influence import TRIED, random_vector, slices_add_up
from hesse.curvature.slicing import Slicing, rows_of, sliced, tensors_in
from hesse.linalg.diagonal_rules import costly_diagonal_rule, diagonal_rule, exact_diagonal
from hesse.operators.average import Average
from hesse.operators.base import LinearOperator
from hesse.operators.weighted_sum import handed_out

Make = Callable[[Any], LinearOperator]
_PEAK = 0.4  # of the budget: what a batch in slices takes at the highest, where graphs of slices are not kept


@dataclass(frozen=True, eq=False)
class Making:
    """How batches become matrices.

    Attributes:
        make: turns a batch into its matrix.
        model: what it runs.
        loss: what it differentiates.
        memory: the budget; None: that in force.
        asked: what for, in error messages.
    """

    make: Make
    model: Model
    loss: Any
    memory: Budget | None
    asked: str

    def watch(self) -> Watch:
        """Remembers what the matrices of all batches have to read alike."""
        return Watch(**self.read)

    @property
    def read(self) -> dict[str, Any]:
        """What the matrices read besides their batch."""
        module = self.model.module
        return {"model": self.model.key if module is None else module, "loss": self.loss}


class SplitBatch(Average):
    """The matrix of one batch as the average over slices of it, each of which is worked on alone.

    Graphs of slices are kept as for a data set. Where memory fails the slices are halved and the pass begins anew.

    Args:
        making: how a slice becomes its matrix.
        batch: what is sliced.
        at_once: samples of a slice, at most.
        ground: bytes taken before it was found how many; None where that is unknown.
        watch: over what matrices of slices read; None: one from now on.
        keep: whether graphs of slices are kept.

    Attributes:
        at_once: as given; halved where memory fails.
        reads, watch: what must not change while it is used, besides the batch.
        peak_bytes: what a product takes at the highest, as planned.
    """

    def __init__(
        self, making: Making, batch: Any, at_once: int, ground: int | None, *, watch: Watch | None = None, keep: bool = True
    ) -> None:
        self.batch, self.at_once, self._making = batch, at_once, making
        self.count, self.reads = sample_count(batch, None, making.asked), making.model.reads
        self.watch = making.watch() if watch is None else watch
        self.peak_bytes = int(_PEAK * (given_budget(making.memory, making.model.device) or 0))

        def made(piece: Any) -> LinearOperator:
            operator = making.make(piece)
            operator.watch = self.watch  # pyright: ignore[reportAttributeAccessIssue]
            return operator

        made.watch = self.watch  # pyright: ignore[reportFunctionMemberAccess] - for `DataSet`
        while True:
            try:
                super().__init__(made, sliced(batch, self.count, self.at_once), keep=keep, memory=making.memory)
                if ground is not None:
                    self.data.division.base = ground
                if watch is None:
                    self.watch.settle()
                return
            except (MemoryError, RuntimeError) as error:
                failure = error.with_traceback(None)
            self._halve(failure)

    def _halve(self, failure: Exception) -> None:
        if not is_allocation_failure(failure):
            raise failure
        if self.at_once == 1:
            if isinstance(failure, HesseError):
                raise failure
            budget = given_budget(self._making.memory, tensors_in(self.batch)[0].device) or 0
            raise too_small(budget, budget + 1, self._making.asked) from failure
        self.at_once = -(-self.at_once // 2)

    def combine(self, quantity: Callable[[LinearOperator], Tree]) -> Tree:
        """As `Average.combine`; in smaller slices if the quantity takes more of a few samples than a product does.

        Cost: with a budget, besides, the quantity of about a tenth of the batch.
        """
        making = self._making
        slicing = Slicing(making.model, lambda piece: quantity(making.make(piece)), making.memory, making.asked)
        at_once = slicing.at_once(self.batch)
        if at_once is None or at_once >= self.at_once:
            return self._product(quantity)
        return SplitBatch(making, self.batch, at_once, slicing.ground, watch=self.watch, keep=False)._product(quantity)

    def mv(self, v: Tree) -> Tree:
        vector = handed_out(v)
        return self._product(lambda operator: operator.mv(vector()))

    def mm(self, V: Tree) -> Tree:
        block = handed_out(V)
        return self._product(lambda operator: operator.mm(block()))

    def _product(self, quantity: Callable[[LinearOperator], Tree]) -> Tree:
        """What takes no more than a product; begins anew with smaller slices where memory fails."""
        while True:
            try:
                return super().combine(quantity)
            except (MemoryError, RuntimeError) as error:
                failure = error.with_traceback(None)
            self._halve(failure)
            self.data = self.data.of(sliced(self.batch, self.count, self.at_once))


    def of_few(self) -> LinearOperator:
        """The matrix of two samples, which tells what is known of those of slices."""
        return self._making.make(rows_of(self.batch, 0, min(TRIED, self.count)))


@diagonal_rule.register(SplitBatch)
def _diagonal(A: SplitBatch) -> Tensor | None:
    return None if diagonal_rule(A.of_few()) is None else A.combine(exact_diagonal)


@costly_diagonal_rule.register(SplitBatch)
def _costly_diagonal(A: SplitBatch) -> Tensor | None:
    return None if costly_diagonal_rule(A.of_few()) is None else A.combine(exact_diagonal)


def split_if_needed(making: Making, *, is_data_set: bool) -> Make:
    """`make` for batches of any size: those too large for the budget become a `SplitBatch`.

    Args:
        making: how a batch becomes its matrix. Without a budget, batches are split where making them runs out of memory.
        is_data_set: whether there will be several: changes of model and loss between them are noticed, then.

    Raises:
        MemoryBudgetError: from the result: two samples do not fit, or the batch does not and its samples influence each other.
    """
    make, model, memory, asked = making.make, making.model, making.memory, making.asked
    watch = making.watch() if is_data_set else None

    def work(piece: Any) -> None:
        operator = make(piece)
        operator.mv(random_vector(operator))

    slicing = Slicing(model, work, memory, asked)

    def made(batch: Any) -> LinearOperator:
        at_once = _at_once(slicing, making, batch)
        if at_once is None:
            try:
                operator: Any = make(batch)
                if watch is not None:  # passes over a data set divide the budget themselves
                    operator.watch, operator.peak_bytes = watch, slicing.taken(batch)
                else:
                    operator.memory, operator.watched = memory, making.read
                return operator
            except (MemoryError, RuntimeError) as error:
                count = sample_count(batch, None, asked)
                if not is_allocation_failure(error) or isinstance(error, HesseError) or count < 2 * TRIED:
                    raise
                at_once = count // 2
        budget = given_budget(memory, model.device)
        least = slicing.needed(batch) or (budget or 0) + 1
        try:
            added_up = slices_add_up(make, batch, at_once, asked)
        except (RuntimeError, ValueError, IndexError) as error:
            _explain(error, slicing, making, batch)
            raise
        if not added_up:
            raise _influenced(asked, least)
        return SplitBatch(making, batch, at_once, slicing.ground, watch=watch, keep=not is_data_set)

    made.watch = watch  # pyright: ignore[reportFunctionMemberAccess] - for `DataSet`
    return made


def _at_once(slicing: Slicing, making: Making, batch: Any) -> int | None:
    """As `Slicing.at_once`; refuses models and losses that take the whole batch alone."""
    try:
        return slicing.at_once(batch)
    except (RuntimeError, ValueError, IndexError) as error:
        _explain(error, slicing, making, batch)
        raise


def _explain(error: Exception, slicing: Slicing, making: Making, batch: Any) -> None:
    """Raise `MemoryBudgetError` if the error comes from slicing: the whole batch runs without one.

    Cost: a run of model and loss on the whole batch, without a graph.
    """
    if is_allocation_failure(error) or (isinstance(error, HesseError) and not isinstance(error, DataError)):
        return
    inputs, targets = split_batch(batch, making.asked)
    try:
        with torch.no_grad():
            making.loss(making.model.call(making.model.params, inputs), targets)
    except Exception:  # the user's code, which may raise anything: the error in hand is as good
        return
    raise _influenced(making.asked, slicing.unlimited(batch)) from error


def _influenced(asked: str, least: int) -> MemoryBudgetError:
    """The error for a batch that cannot be sliced; `least`: what the whole of it takes."""
    return MemoryBudgetError(
        asked,
        "samples that influence each other (or a loss that does not add up), so that there can be no slices of the batch",
        f"pass memory={least} or more, for the whole batch at once",
        least,
    )
