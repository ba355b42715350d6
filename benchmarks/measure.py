"""Time in units of one gradient, and peak memory; nothing here knows what is measured."""

from __future__ import annotations

import ctypes
import gc
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Budget:
    """How long to measure: up to `most` runs within `seconds`; up to `least` if these take up to `PATIENCE` times as long.

    `FEWEST` runs are made in any case.
    """

    seconds: float
    least: int
    most: int


FEWEST = 3
PATIENCE = 5
FULL = Budget(seconds=2.0, least=5, most=100)
QUICK = Budget(seconds=0.25, least=3, most=20)
BETWEEN = 4  # at most so many gradients are timed between two runs
LONG = 0.1  # seconds; so much work leaves caches in a state of its own, whatever ran before


@dataclass(frozen=True)
class Timing:
    """`ratio` and its quartiles are of the runs' own ratios; `seconds` and `gradient_seconds` are medians.

    `ratio_of_minima` is kept for comparison only: it is the steadier where a run is short and often left alone,
    and far too large where a run is so long that none is left alone while some gradients are.
    """

    seconds: float
    gradient_seconds: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    ratio_of_minima: float
    rounds: int


def timing(run: Callable[[], Any], gradient: Callable[[], Any], budget: Budget) -> Timing:
    """Time `run` and `gradient` in turn, so that what slows the machine down slows both.

    Every run is divided by the mean of the gradients timed right before and right after it, and the median over
    the runs is taken: a disturbance that lasts is in both and cancels, one that does not is an outlier. (The
    ratio of two medians has neither property: they may come from different moments.) Where a run is long, more
    gradients are timed between two of them, so that both see a like share of short disturbances. Before they
    are timed, one that is not brings the caches back. Call `run` once before, to be rid of first-call costs.
    """
    gc.collect()
    units = [_gradients(gradient, 0.0, 0.0)]
    times: list[float] = []
    start = time.perf_counter()
    while _goes_on(budget, len(times), time.perf_counter() - start):
        times.append(_time(run))
        units.append(_gradients(gradient, times[-1], units[-1][-1]))
    around = [before + after for before, after in itertools.pairwise(units)]
    ratios = [t / statistics.fmean(g) for t, g in zip(times, around, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    gradients = [g for group in units for g in group]
    return Timing(
        seconds=statistics.median(times),
        gradient_seconds=statistics.median(gradients),
        ratio=statistics.median(ratios),
        ratio_quartiles=(low, high),
        ratio_of_minima=min(times) / min(gradients),
        rounds=len(times),
    )


def _goes_on(budget: Budget, rounds: int, elapsed: float) -> bool:
    if rounds < FEWEST:
        return True
    return elapsed < (budget.seconds * PATIENCE if rounds < budget.least else budget.seconds) and rounds < budget.most


def _gradients(gradient: Callable[[], Any], run_seconds: float, seconds: float) -> list[float]:
    """Times of a few gradients: a quarter of what fits into a run, within bounds; `seconds` is what one took last."""
    if seconds < LONG:
        gradient()
    count = round(run_seconds / seconds / 4) if seconds else 1
    return [_time(gradient) for _ in range(min(max(count, 1), BETWEEN))]


def _time(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    result = run()
    elapsed = time.perf_counter() - start
    del result  # freeing it is not part of the work
    return elapsed


def peak_growth(run: Callable[[], Any]) -> int | None:
    """Bytes by which resident memory grew at most during `run`; None where the system cannot tell.

    Linux only: resets the process's high-water mark (``/proc/self/clear_refs``) and reads it afterwards.
    Freed memory is first given back to the system, so that re-using it counts as growth.
    """
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    before = _status("VmRSS")
    result = run()
    after = _status("VmHWM")
    del result
    return max(0, after - before)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))
