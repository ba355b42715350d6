"""Which tiles of a Gram matrix fit the memory budget: by estimates, or measured on a small one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from hesse.core.growth import Growth
from hesse.core.memory import chunk_size, current_budget, given_budget, too_small
from hesse.parameters.appetite import DOUBT, FEW, NOISE, PAIR, PEAK, SURE, Appetite, least_for, measured
from hesse.parameters.base import JacobianBySample
from hesse.parameters.gram_hand import in_pieces, values_of
from hesse.parameters.gram_plan import GramPlan, tiles_of
from hesse.parameters.tile import Tile, held_tile

_MOST_SAMPLES = 1024  # of a tile
_MOST_TILES = 2048  # of the rows and of the columns together, where fewer fit
_MANY = 64  # tiles: a budget that is less than a measurement may be wrong by, and gives more, is taken for that much
_IN_HAND = 3  # tiles' worth of memory that the capture of one may take, by estimate
_SHARE = 0.8  # of the budget that tiles may take by estimate; the contractions need the rest
_AIM = 0.7  # of the budget, by measurement: what freed memory can be used again for is not always the same
_COPIES = 6  # of a block's values, while they are added up, mirrored, laid out by sample, and written
_CAPTURE = 16  # samples whose capture takes as long as the overhead of a capture
_TASK = 16  # the same of a block


@dataclass(frozen=True)
class _Needs:
    """What a Gram matrix takes.

    Attributes:
        capture: of capturing so many samples, and writing out what is held as rows.
        held: bytes that a sample takes in a tile.
        contraction: bytes that a sample of two tiles takes while they meet, besides the block.
        pair: of the block, for each pair of samples.
    """

    capture: Appetite
    held: float
    contraction: float
    pair: int

    def beside(self, tile: int) -> int:
        """Bytes that a tile in hand and a block take."""
        return math.ceil((self.held + self.contraction) * tile + self.pair * tile**2)

    def least(self) -> int:
        """Bytes of a block of two samples by two, one of the two tiles held."""
        return self.capture.of(PAIR) + self.beside(PAIR) + math.ceil(PAIR * self.held)


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


def _estimated(
    first: JacobianBySample, second: JacobianBySample, taken: int, tile: int | None, most: float = math.inf
) -> GramPlan:
    """By what the records of a sample take; many tiles are made larger where they are less than a measurement may be wrong by.

    Args:
        first, second, taken, tile: as of `plan_gram`.
        most: bytes that tiles are given of what is left, at most.
    """
    budget = current_budget(first.memory, first.in_space.device)
    each = max(first.bytes_per_sample, second.bytes_per_sample, 1)
    if each * _IN_HAND > NOISE:
        chunk_size(1, int(each * (_IN_HAND + 1) / _SHARE), taken, budget, "the Gram matrix of two samples")
    left = min(budget - taken, most)
    plan = _estimated_within(first, second, _SHARE * left, tile)
    if left < NOISE and max(first.count, second.count) > _MANY * plan.tile:
        return _estimated_within(first, second, _SHARE * NOISE, tile)
    return plan


def _estimated_within(first: JacobianBySample, second: JacobianBySample, room: float, tile: int | None) -> GramPlan:
    each = max(first.bytes_per_sample, second.bytes_per_sample, 1)
    if tile is None:
        of_block = int((max(room, 0) / (4 * _block_bytes(first, second))) ** 0.5)
        tile = min(_MOST_SAMPLES, max(int(room / each) // (4 * _IN_HAND), 1), max(of_block, 1))
    tile = min(tile, max(first.count, second.count))
    return _plan(first, second, tile, max(int(room / (each * tile)) - _IN_HAND, 1))


def _plan(first: JacobianBySample, second: JacobianBySample, tile: int, held: int) -> GramPlan:
    most = -(-max(first.count, second.count) // tile) + max(len(first.sizes), len(second.sizes))
    return GramPlan(first.sizes, None if second is first else second.sizes, tile, min(held, most))


def _needs(first: JacobianBySample, second: JacobianBySample, budget: int, taken: int) -> _Needs:
    """Measured on a few samples, which are captured and contracted."""
    device, held, contraction = first.in_space.device, 1.0, 0.0
    captures: list[Appetite] = []
    for J in dict.fromkeys((first, second)):
        fetch = J.tiles()

        def tile(count: int, fetch: Callable[[slice], Tile] = fetch) -> Tile:
            return held_tile(in_pieces(fetch, slice(0, count), None), count)

        most = min(J.count, _MOST_SAMPLES)
        captures.append(measured(tile, most, budget, device, "the Gram matrix", taken))
        few = min(FEW, captures[-1].fits(budget - taken), J.count) or min(PAIR, J.count)
        found, others = tile(few), tile(few)
        held = max(held, sum(part.held_bytes or 0 for part in found) / few)
        with Growth(device) as growth:
            values_of(found, others)
        unshared = sum(part.source.stacked_bytes for part in found)
        contraction = max(contraction, growth.bytes / few if growth.bytes > NOISE else 0.0, unshared / few)
    capture = max(captures, key=lambda appetite: appetite.of(FEW))
    return _Needs(capture, held, contraction, _block_bytes(first, second))


@dataclass(frozen=True)
class _Choice:
    """Tiles of so many samples, so many of them held, so many samples captured at once.

    Attributes:
        tile, held, captured: as of a `GramPlan`.
        seconds: about the time of the plan, in captures of one sample among many.
    """

    tile: int
    held: int
    captured: int
    seconds: float


def _fitting(
    first: JacobianBySample, second: JacobianBySample, needs: _Needs, budget: int, taken: int, tile: int | None
) -> GramPlan:
    room = max(_AIM * budget - taken - NOISE, _SHARE * NOISE)
    choices = list(_choices(first.sizes, None if second is first else second.sizes, needs, room, tile or _MOST_SAMPLES))
    if not choices and needs.least() <= room + NOISE:
        return _estimated(first, second, taken, tile, NOISE)
    if not choices:
        least = int((taken + least_for(needs.least())) / _AIM)
        raise too_small(budget, max(least, budget + 1), "the Gram matrix of two samples")
    best = min(choices, key=lambda choice: choice.seconds)
    return replace(_plan(first, second, best.tile, best.held), captured=best.captured)


def _choices(
    sizes: tuple[int, ...], others: tuple[int, ...] | None, needs: _Needs, room: float, most: int
) -> Iterator[_Choice]:
    """What fits: every size of tiles with every size of pieces."""
    both = sizes + (others or ())
    largest = min(most, max(sum(sizes), sum(others or ())))
    whole = {max(both) * count for count in _sizes(largest // max(both))}
    found = False
    for size in sorted({*_sizes(largest), *whole, largest}, reverse=True):
        if found and size * _MOST_TILES < sum(both):
            return
        tiles = [tiles_of(batches, size) for batches in (sizes, sizes if others is None else others)]
        tile = max(part.stop - part.start for parts in tiles for part in parts)
        for captured in sorted({*_sizes(tile), tile}):
            left = room - needs.capture.of(captured) - needs.beside(tile)
            held = int(left / (needs.held * tile)) if left > 0 else 0
            if held:
                found = True
                yield _Choice(tile, held, captured, _seconds(sizes, others, held, captured, *map(len, tiles)))


def _seconds(
    sizes: tuple[int, ...], others: tuple[int, ...] | None, held: int, captured: int, rows: int, columns: int
) -> float:
    if others is None:
        captures, tasks = sum(sizes) * (1 + max(rows - held, 0) / (2 * held)), rows * (rows + 1) / 2
    else:
        captures, tasks = sum(others) + sum(sizes) * -(-columns // held), rows * columns
    return captures * (1 + _CAPTURE / captured) + _TASK * tasks


def _sizes(most: int) -> list[int]:
    """Powers of two, and one and a half of them, so that two measurements mostly agree."""
    sizes = (size for power in range(most.bit_length()) for size in (1 << power, 3 << power >> 1))
    return sorted({size for size in sizes if size <= most})
