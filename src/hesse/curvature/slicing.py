"""How many samples of a batch may be worked on at once under a memory budget, measured on a few of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hesse.autodiff.model import Model, sample_count
from hesse.core import tree
from hesse.core.chunked import is_allocation_failure
from hesse.core.errors import HesseError, MemoryBudgetError
from hesse.core.growth import Growth, settle, taken_bytes
from hesse.core.memory import Budget, format_bytes, given_budget, too_small
from hesse.core.progress import track

_SMALL = 1024  # times the bytes of batch and parameters: a budget above is not looked at more closely
_WHOLE = 0.65  # of the budget: a batch that takes less is not sliced
SLICE = 0.4  # of the budget for one slice; what is kept of other slices takes up to half
ALONE = 0.8  # of the budget for one slice, where nothing is kept of other slices
_LEFT = 0.1  # of the budget: what slices may leave behind unused before it is given back
_FASTER = 2  # times as many samples as in the slice before, at most
_FEWEST = 4  # samples that calibrate
_PART = 64  # and one in so many of the batch
_FURTHEST = 8  # times the most samples that were measured: no conclusion goes beyond
_MEASURED = 0.8  # of the budget that a measurement may take, if all it took so far grows with the samples
_STEP = 1.25  # by how much a further measurement has to be larger, to be worth it
_TRIALS = 3
_NOISE = 2**20  # bytes that a measurement may be wrong by


@dataclass(frozen=True)
class Appetite:
    """Bytes that work takes: so many whatever the number of samples, and so many for each; known up to `most` samples."""

    fixed: float
    per_sample: float
    most: int

    def of(self, count: int) -> int:
        """Bytes for some samples."""
        return int(self.fixed + self.per_sample * count)


class Slicing:
    """Finds how many samples of a batch are worked on at once; measures the first batch of each shape.

    Args:
        model: what is run; its device is the one that is measured.
        work: does to a few samples what will be done to all, and leaves nothing behind.
        memory: the budget; None: that in force. Without one nothing is sliced and nothing measured.
        asked: what for, in error messages.
        share: of the budget, for one slice.

    Attributes:
        floor: bytes that are taken besides, whatever the number of samples; `work` may raise it.
        ground: bytes taken when the first batch was looked at; None before, and where none was.
        ceiling: samples of a slice at most, since more have failed; None: none has.
    """

    def __init__(
        self, model: Model, work: Callable[[Any], object], memory: Budget | None, asked: str, share: float = SLICE
    ) -> None:
        self.model, self.work, self.memory, self.asked, self.share = model, work, memory, asked, share
        self.floor = 0
        self.ground: int | None = None
        self.ceiling: int | None = None
        self._known: dict[Any, Appetite] = {}

    def needed(self, batch: Any) -> int | None:
        """Bytes that a whole batch of a shape seen before takes, with a margin; None if it was not measured."""
        appetite = self._known.get(_key(batch))
        return None if appetite is None else math.ceil(appetite.of(sample_count(batch, None, self.asked)) / _WHOLE)

    def unlimited(self, batch: Any) -> int:
        """Bytes of a budget under which nothing is measured."""
        return _SMALL * sum(leaf.nbytes for leaf in (*tensors_in(batch), *tree.leaves(self.model.params))) + 1

    def taken(self, batch: Any) -> int:
        """Bytes that a whole batch of a shape seen before takes; 0 if it was not measured."""
        appetite = self._known.get(_key(batch))
        return 0 if appetite is None else appetite.of(sample_count(batch, None, self.asked))

    def at_once(self, batch: Any) -> int | None:
        """Samples of a slice; None: the batch need not be sliced.

        Raises:
            MemoryBudgetError: not even two samples fit; `least` says what would do.

        Cost: nothing without a budget, or where it is a thousand times as large as batch and parameters; else the first time
        the work on about a tenth of the batch.
        """
        fits = self._fits(batch)
        if self.ceiling is None or (fits or sample_count(batch, None, self.asked)) <= self.ceiling:
            return fits
        return self.ceiling

    def _fits(self, batch: Any) -> int | None:
        budget = given_budget(self.memory, self.model.device)
        if budget is None:
            return None
        if budget >= self.unlimited(batch):
            return None
        key = _key(batch)
        count = sample_count(batch, None, self.asked)
        appetite = self._known.get(key)
        if appetite is None:
            appetite = self._known[key] = self._fitting(batch, count, budget)
        if count == 1 or (appetite.of(count) <= _WHOLE * budget and count <= appetite.most):
            return None
        fits = int((self.share * budget - appetite.fixed) / max(appetite.per_sample, 1.0))
        return min(max(fits, 2), appetite.most, count)

    def _fitting(self, batch: Any, count: int, budget: int) -> Appetite:
        """What is measured, again where not even two samples would fit: over what libraries took at their first call, then."""
        tried: list[int] = []
        while len(tried) < _TRIALS:
            appetite = self._measured(batch, count, budget)
            tried.append(max(appetite.of(min(count, 2)), self.floor))
            if tried[-1] <= budget:
                return appetite
            self.ground = None
        raise self.too_small(budget, min(tried))

    def _measured(self, batch: Any, count: int, budget: int) -> Appetite:
        """By measurements on more and more samples, which tell what a sample takes from what all share."""
        settle()
        if self.ground is None:
            self.ground = taken_bytes(self.model.device)
        few = min(count, max(_FEWEST, count // _PART))
        self._highest(batch, few, budget)  # what kernels take once, at their first call, is no sample's
        counts, taken = [few], [self._highest(batch, few, budget)]
        while count > _FURTHEST * counts[-1] or (len(counts) == 1 and few < count):
            allowed = int(_MEASURED * budget / max(taken[-1], _NOISE) * counts[-1])
            more = min(count, _FURTHEST * counts[-1], allowed)
            if more < _STEP * counts[-1]:
                break
            counts.append(more)
            taken.append(self._highest(batch, more, budget))
        most = max(_FURTHEST * counts[-1], 2)
        if len(counts) == 1 and few > 1:  # no room for more: a smaller one tells what is shared, but not what more would take
            counts, taken, most = [min(2, few - 1), few], [self._highest(batch, min(2, few - 1), budget), *taken], few
        if len(counts) == 1:
            return Appetite(0.0, taken[0], most)
        per_sample = max((taken[-1] - taken[0]) / (counts[-1] - counts[0]), 0.0)
        fixed = max(bytes_ - per_sample * number for bytes_, number in zip(taken, counts, strict=True))
        return Appetite(max(fixed, 0.0), per_sample, most)

    def _highest(self, batch: Any, count: int, budget: int) -> int:
        """Bytes that work on some samples takes over the ground."""
        settle()
        growth = Growth(self.model.device)
        try:
            with growth:
                self.work(rows_of(batch, 0, count))
        except (MemoryError, RuntimeError) as error:
            if not is_allocation_failure(error) or isinstance(error, MemoryBudgetError):
                raise
            raise self.too_small(budget, max(growth.bytes, budget + 1)) from error
        return growth.highest - (growth.start if self.ground is None else self.ground)

    def too_small(self, budget: int, least: int) -> MemoryBudgetError:
        """The error for a budget that does not hold the work on a few samples."""
        least = math.ceil(1.1 * least) + 2 * _NOISE
        found = f"a budget of {format_bytes(budget)}, where two samples take {format_bytes(least)}"
        return MemoryBudgetError(self.asked, found, f"pass memory={least}, or work within hesse.memory({least})", least)


class SlicedBatches:
    """A data set whose batches are handed out in slices that fit the memory budget.

    The first slice is as large as an estimate says; the others follow what the one before took.

    Args:
        batches: an iterable of batches that can be read again.
        slicing: finds how large a slice may be.

    Attributes:
        handed: samples of the slice, or batch, that was handed out last.
    """

    def __init__(self, batches: Iterable[Any], slicing: Slicing) -> None:
        self.batches, self.slicing = batches, slicing
        self.handed = 0

    def __iter__(self) -> Iterator[Any]:
        for batch in track(self.batches, f"{self.slicing.asked.partition('(')[0]}: batches"):
            for piece in self._pieces(batch):
                self.handed = next((leaf.shape[0] for leaf in tensors_in(piece) if leaf.ndim), 0)
                yield piece
                del piece
            del batch

    def halve(self, failure: Exception) -> None:
        """Hand out half as many samples as in the last slice from now on, whose work failed.

        Raises:
            Exception: the failure, if it is no allocation's. MemoryBudgetError: of one sample.
        """
        if not is_allocation_failure(failure) or isinstance(failure, HesseError):
            raise failure
        if self.handed < 2:
            budget = given_budget(self.slicing.memory, self.slicing.model.device) or 0
            raise too_small(budget, budget + 1, self.slicing.asked) from failure
        self.slicing.ceiling = self.handed // 2

    def _pieces(self, batch: Any) -> Iterable[Any]:
        at_once = self.slicing.at_once(batch)
        return [batch] if at_once is None else self._slices(batch, sample_count(batch, None, self.slicing.asked), at_once)

    def _slices(self, batch: Any, count: int, at_once: int) -> Iterator[Any]:
        device = self.slicing.model.device
        budget, ground = given_budget(self.slicing.memory, device), self.slicing.ground
        if budget is None or ground is None:
            yield from sliced(batch, count, at_once)
            return
        done = 0
        while done < count:
            size = -(-(count - done) // -(-(count - done) // at_once))  # of equal length, as far as they can be
            if taken_bytes(device) - ground > _LEFT * budget:
                settle()
            with Growth(device) as growth:
                yield rows_of(batch, done, done + size)
            done += size
            most = size * self.slicing.share * budget / max(growth.highest - ground, _NOISE)
            at_once = min(max(int(most), 1), max(at_once, _FASTER * size), self.slicing.ceiling or count)


def tensors_in(batch: Any) -> list[Tensor]:
    """The tensors of a batch."""
    return [leaf for leaf in tree.leaves(batch) if isinstance(leaf, Tensor)]


def _key(batch: Any) -> Any:
    return tuple((leaf.shape[1:], leaf.dtype) for leaf in tensors_in(batch))


def rows_of(value: Any, start: int, stop: int) -> Any:
    """Samples of a batch, as views of its tensors."""
    return tree.map_tree(lambda leaf: leaf[start:stop] if isinstance(leaf, Tensor) else leaf, value)


def sliced(batch: Any, count: int, at_once: int) -> list[Any]:
    """A batch in slices of equal length, up to one sample, of at most so many samples."""
    number = -(-count // at_once)
    bounds = [count * k // number for k in range(number + 1)]
    return [rows_of(batch, start, stop) for start, stop in itertools.pairwise(bounds)]
