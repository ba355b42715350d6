"""Kronecker factors within a memory budget: a pass over the data is tried with a few samples, then made in slices that fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from hesse.autodiff.model import Model, is_one_batch, split_batch
from hesse.core.memory import Budget
from hesse.core.watch import Watch
from hesse.curvature.batch import BatchLoss
from hesse.curvature.kronecker import KroneckerFactored, Place
from hesse.curvature.kronecker_blocks import Block, EigenBlock
from hesse.curvature.kronecker_pass import Accumulated, How
from hesse.curvature.slicing import ALONE, SlicedBatches, Slicing
from hesse.operators.data_set import refuse_one_shot
from hesse.operators.spread import Spread
from hesse.parameters.jacobian import ParameterJacobian

_CHANGED = "leave parameters, buffers, modes, modules and weights of the loss alone until it returns"
Attempt = Callable[[How, Any], int]
Result = TypeVar("Result")


class Reading:
    """What passes over data read: one batch as it is, or batches in slices that fit the memory budget.

    Args:
        how, model, loss, data: of `kfac` or `ekfac`; of data on several processes this one's batches are read.
        attempt: does to a few samples what will be done to all, so that its growth of memory can be measured; gives the bytes
            that something else will take, which does not depend on the number of samples.
        memory: the budget; None: that in force. Without one, slices are read where a batch runs out of memory.

    Raises:
        MemoryBudgetError: two samples do not fit; of data sets when the batch is reached.

    Attributes:
        how: as given; a tensor of labels lies in the data.
        is_one: whether the data are one batch, and read as it is.
    """

    def __init__(
        self, how: How, model: Model, loss: BatchLoss, data: Any, attempt: Attempt, memory: Budget | None
    ) -> None:
        if isinstance(how.labels, Tensor) and is_one_batch(data):
            how, data = replace(how, labels="true"), (split_batch(data, how.asked)[0], how.labels)
        self.how, self._model, self._loss = how, model, loss

        def work(piece: Any) -> None:
            slicing.floor = max(slicing.floor, attempt(how, piece))

        slicing = Slicing(model, work, memory, how.asked, ALONE)
        batches = [data] if is_one_batch(data) else data.batches if isinstance(data, Spread) else data
        refuse_one_shot(batches, how.asked)
        self._sliced = SlicedBatches(batches, slicing)
        self.is_one = is_one_batch(data) and slicing.at_once(data) is None and slicing.ground is None
        self._watch = Watch(model=model.key if model.module is None else model.module, loss=loss)

    def rows(self, *, keep: bool = False, hashes: list[Tensor] | None = None) -> Iterator[ParameterJacobian]:
        """The rows of each batch or slice of one pass, see `How.over`; `keep`: the records, where the data are one batch."""
        return self.how.over(self._model, self._loss, self._sliced, keep=keep and self.is_one, hashes=hashes)

    def passes(self, work: Callable[[], Result]) -> Result:
        """The result of a pass; where an allocation fails it begins anew with slices half as large.

        Raises:
            MemoryBudgetError: one sample does not fit. DataError: model or loss changed since the first pass began.
        """
        while True:
            try:
                with self._watch.running("pass"):
                    result = work()
                self._watch.check(f"{self.how.asked.partition('(')[0]} reads one model and one loss.", _CHANGED)
                return result
            except (MemoryError, RuntimeError) as error:
                failure = error.with_traceback(None)
            self._sliced.halve(failure)
            self.is_one = False


def twice_added(how: How, model: Model, loss: BatchLoss, piece: Any) -> Accumulated:
    """The moments of a few samples, added a second time beside the first, as those of later slices are."""
    found = Accumulated()
    for _ in range(2):
        found.add(how.rows(model, loss, piece), how)
    return found


def with_unit_vectors(start: KroneckerFactored) -> KroneckerFactored:
    """The same with the identity in place of the eigenvectors, which takes the memory of these and no time."""
    return KroneckerFactored(start.in_space, tuple(Place(p.name, p.box, _units(p.block)) for p in start.places), start.mass)


def _units(block: Block) -> Block:
    if block.kind != "kronecker":
        return block
    groups, a, b = block.sizes
    left, right = (
        torch.diag_embed(side.new_ones(groups, size)) if side.ndim == 3 else side.new_zeros(groups, 0)
        for side, size in ((block.left, a), (block.right, b))
    )
    return EigenBlock(left, right, block.right.new_zeros(groups, a, b), block.kind)


def eigenvector_bytes(start: KroneckerFactored) -> int:
    """Bytes that all eigenvectors take at the highest, while they are computed beside the factors.

    LAPACK's divide and conquer method works with ``1 + 6 n + 2 n²`` numbers for a matrix of n rows (xSYEVD).
    """
    held = extra = 0
    for place in start.places:
        block = place.block
        sides = [side for side in (block.left, block.right) if side.ndim == 3 and block.kind == "kronecker"]
        held += block.left.nbytes + block.right.nbytes
        if sides:
            groups, a, b = block.sizes
            held += groups * a * b * sides[0].element_size() + sum(side.nbytes for side in sides)
            extra = max(extra, *(side.nbytes + side.nbytes // 4 for side in sides), *(2 * side[0].nbytes for side in sides))
    return held + extra
