"""Which tiles of a Gram matrix fit the memory budget: by estimates, or measured on a small one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hesse.core.memory import chunk_size, current_budget, given_budget, too_small
from hesse.parameters.appetite import DOUBT, NOISE, PAIR, PEAK, SURE, Appetite, least_for, measured
from hesse.parameters.base import JacobianBySample
from hesse.parameters.gram_hand import values_of
from hesse.parameters.gram_plan import GramPlan

_MOST_SAMPLES = 1024  # of a tile
_FEWEST_SAMPLES = 32  # of a tile, where so many fit
_IN_HAND = 3  # tiles' worth of memory that the capture of one may take, by estimate
_SHARE = 0.8  # of the budget that tiles may take by estimate; the contractions need the rest
_AIM = 0.6  # of the budget, by measurement: what freed memory can be used again for is not always the same
_COPIES = 6  # of a block's values, while they are added up, mirrored, laid out by sample, and written


@dataclass(frozen=True)
class _Needs:
    """What a Gram matrix takes.

    Attributes:
        task: of a task of two tiles of so many samples, without the block.
        held: of the records of a tile.
        pair: of the block, for each pair of samples.
    """

    task: Appetite
    held: Appetite
    pair: int

    def of(self, tile: int) -> int:
        """Bytes of a task of two tiles of so many samples each."""
        return self.task.of(tile) + self.pair * tile**2

    def fits(self, room: float, most: int) -> int:
        """Samples of the largest tile whose tasks fit; 0: none."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.of(middle) <= room else (low, middle - 1)
        return low


def plan_gram(first: JacobianBySample, second: JacobianBySample, taken: int = 0, tile: int | None = None) -> GramPlan:
    """The plan that fits the memory budget of the first Jacobian.

    Args:
        first, second: the Jacobians; the same one for a symmetric matrix.
        taken: bytes of the budget that other things take: the result.
        tile: samples of a tile, where so many fit.

    Raises:
        MemoryBudgetError: two samples do not fit; `least` says what would do.

    Cost: nothing without a budget, or where all is far below it; else the work on about 20 samples.
    """
    given = given_budget(first.memory, first.in_space.device)
    if given is None or _is_small(first, second, given - taken):
        return _estimated(first, second, taken, tile)
    return _fitting(first, second, _needs(first, second, given, taken), given, taken, tile)


def _block_bytes(first: JacobianBySample, second: JacobianBySample) -> int:
    """Bytes that the blocks of a task take for each pair of samples."""
    outputs = (first.out_space.dim // first.count) * (second.out_space.dim // second.count)
    return _COPIES * outputs * max(first.out_space.dtype.itemsize, 4)


def _is_small(first: JacobianBySample, second: JacobianBySample, room: int) -> bool:
    """Whether all tiles and a block fit for sure, or are too few bytes to measure."""
    count, other = min(first.count, _MOST_SAMPLES), min(second.count, _MOST_SAMPLES)
    records = first.bytes_per_sample * first.count + (0 if second is first else second.bytes_per_sample * second.count)
    block = _block_bytes(first, second) * count * other
    return DOUBT * PEAK * records + block <= SURE * room or min(PEAK * records + block, room) <= NOISE


def _estimated(first: JacobianBySample, second: JacobianBySample, taken: int, tile: int | None) -> GramPlan:
    budget = current_budget(first.memory, first.in_space.device)
    each = max(first.bytes_per_sample, second.bytes_per_sample, 1)
    room = _SHARE * (budget - taken)
    if each * _IN_HAND > NOISE:
        chunk_size(1, int(each * (_IN_HAND + 1) / _SHARE), taken, budget, "the Gram matrix of two samples")
    if tile is None:
        of_block = int((max(room, 0) / (4 * _block_bytes(first, second))) ** 0.5)
        tile = min(_MOST_SAMPLES, max(int(room / each) // (4 * _IN_HAND), 1), max(of_block, 1))
    tile = min(tile, max(first.count, second.count))
    return _plan(first, second, tile, max(int(room / (each * tile)) - _IN_HAND, 1))


def _plan(first: JacobianBySample, second: JacobianBySample, tile: int, held: int) -> GramPlan:
    most = -(-max(first.count, second.count) // tile) + max(len(first.sizes), len(second.sizes))
    return GramPlan(first.sizes, None if second is first else second.sizes, tile, min(held, most))


def _needs(first: JacobianBySample, second: JacobianBySample, budget: int, taken: int) -> _Needs:
    """Measured on tiles of a few samples, which are captured and contracted."""
    fetch = first.tiles()
    fetch_other = fetch if second is first else second.tiles()
    held: dict[int, int] = {}

    def task(count: int) -> torch.Tensor:
        rows = fetch(slice(0, min(count, first.count)))
        columns = fetch_other(slice(0, min(count, second.count)))
        held[count] = max(sum(J.held_bytes or 0 for J in tile) for tile in (rows, columns))
        return values_of(rows, columns)

    most, device = min(max(first.count, second.count), _MOST_SAMPLES), first.in_space.device
    appetite = measured(task, most, budget, device, "the Gram matrix", taken)
    small, large = min(held), max(held)
    slope = (held[large] - held[small]) / (large - small) if large > small else held[large] / large
    return _Needs(appetite, Appetite(max(held[large] - slope * large, 0.0), slope), _block_bytes(first, second))


def _fitting(
    first: JacobianBySample, second: JacobianBySample, needs: _Needs, budget: int, taken: int, tile: int | None
) -> GramPlan:
    room, most = _AIM * budget - taken - 2 * NOISE, max(first.count, second.count)
    limit = min(most, _MOST_SAMPLES)
    largest = needs.fits(room, max(limit, tile or 1))
    if not largest:
        least = int((taken + 2 * NOISE + least_for(needs.of(PAIR))) / _AIM)
        raise too_small(budget, max(least, budget + 1), "the Gram matrix of two samples")
    if tile is not None and min(tile, most) <= largest:
        chosen = min(tile, most)
    elif largest >= most:
        chosen = most
    else:
        chosen = _round(max(needs.fits(room / 3, limit), min(needs.fits(0.8 * room, limit), _FEWEST_SAMPLES), 1))
    left = room - needs.of(chosen)
    return _plan(first, second, chosen, 1 + int(left / max(needs.held.of(chosen), 1)))


def _round(tile: int) -> int:
    """A power of two, or one and a half of one, so that two measurements mostly agree."""
    power = 1 << (tile.bit_length() - 1)
    return power + power // 2 if tile >= power + power // 2 else power
