"""How many samples may be worked on at once under a memory budget: measured on a few of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from hesse.core.chunked import is_allocation_failure
from hesse.core.errors import MemoryBudgetError
from hesse.core.growth import Growth, settle
from hesse.core.memory import too_small

FEW = 8  # samples that show what a sample takes
PAIR = 2  # the same under a budget: the fewest that tell whether samples influence each other
PEAK = 3  # times what the records of a sample take, that capturing it takes
DOUBT = 4  # times that estimate, which it may take all the same
SURE = 0.25  # of a budget: work that is estimated below it is not measured
WHOLE = 0.6  # of a budget: a batch whose capture takes less is captured at once; quantities need the rest
PART = 0.4  # of a budget: the capture of a part of a batch
NOISE = 2**20  # bytes that a measurement may be wrong by
_TRIED = 0.65  # of a budget: a measurement, at the worst
_STEPS = 3  # measurements after the first, each of some times as many samples
_CLEAR = 16 * NOISE  # a measurement of so many bytes tells them well


@dataclass(frozen=True)
class Appetite:
    """Bytes that work takes: so many whatever the number of samples, and so many for each.

    Attributes:
        fixed, per_sample: the bytes.
        least: what the work on two samples took; that on one is not known to take less.
    """

    fixed: float
    per_sample: float
    least: float = 0.0

    def of(self, count: int) -> int:
        """Bytes for some samples."""
        return math.ceil(max(self.fixed + self.per_sample * count, self.least))

    def fits(self, room: float) -> int:
        """How many samples fit; 0: none."""
        return 0 if self.least > room else max(int((room - self.fixed) / max(self.per_sample, 1.0)), 0)


def is_small(per_sample: int, count: int, budget: int) -> bool:
    """Whether samples that take so many bytes each, by a doubtful estimate, fit for sure, or are too few bytes to measure."""
    return per_sample * DOUBT * count <= SURE * budget or per_sample * count <= NOISE


def measured(
    work: Callable[[int], object], total: int, budget: int, device: torch.device, what: str, taken: int = 0
) -> Appetite:
    """What work on some of the samples takes, from two, and from more and more of them.

    Args:
        work: does to so many samples what will be done to more; what it returns is dropped when it was measured.
        total: as many samples as there are.
        budget: bytes that the measurement itself is to keep to.
        device: where the work runs.
        what: how an error names the work.
        taken: bytes of the budget that are for something else: results.

    Raises:
        MemoryBudgetError: two samples take more than the budget; `least` says what would do.

    Cost: the work on two samples, twice, and on a few times as many, until it takes 16 MiB or half of the budget.
    """
    few = min(PAIR, total)
    room = budget - taken
    _highest(work, few, budget, device, what)  # kernels and checks that come once
    first = _highest(work, few, budget, device, what)
    if first > room + NOISE:
        raise too_small(budget, taken + least_for(first), f"{what} of two samples")
    seen = [(few, first)]
    for _ in range(_STEPS):
        count, taken_last = seen[-1]
        times = min(int(_TRIED * room / max(taken_last, NOISE)), FEW)
        more = min(total, count * times)
        if more < 2 * count or (taken_last >= _CLEAR and count >= FEW):
            break
        seen.append((more, _highest(work, more, budget, device, what)))
    return _line(seen)


def _line(seen: list[tuple[int, int]]) -> Appetite:
    """What more samples take, from the two largest measurements; by their number where these are no more than noise."""
    least, (count, taken) = seen[0][1], seen[-1]
    if len(seen) == 1 or taken < _CLEAR / 4:
        return Appetite(0.0, max(taken, 1) / count, least)
    few, first = seen[-2]
    per_sample = max((taken - first) / (count - few), taken / (2 * count))
    return Appetite(max(taken - per_sample * count, 0.0), per_sample, least)


def least_for(taken: float) -> int:
    """The budget that holds work which has been measured once."""
    return math.ceil(1.15 * taken) + 2 * NOISE


def _highest(work: Callable[[int], object], count: int, budget: int, device: torch.device, what: str) -> int:
    """Bytes that work on so many samples takes."""
    if device.type == "cpu":
        settle()
    growth = Growth(device)
    try:
        with growth:
            work(count)
    except (MemoryError, RuntimeError) as error:
        if not is_allocation_failure(error) or isinstance(error, MemoryBudgetError):
            raise
        raise too_small(budget, least_for(max(growth.bytes, budget)), f"{what} of {count} samples") from error
    return growth.bytes
