"""Time in units of one gradient, and peak memory; nothing here knows what is measured."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Budget:
    """How long to measure: at least `least` rounds, at most `most`, and no further one after `seconds`."""

    seconds: float
    least: int
    most: int


FULL = Budget(seconds=4.0, least=7, most=100)
QUICK = Budget(seconds=0.4, least=3, most=20)


@dataclass(frozen=True)
class Timing:
    """Medians over the rounds: `ratio` is that of the medians, the quartiles are of the rounds' ratios."""

    seconds: float
    gradient_seconds: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    rounds: int


def timing(run: Callable[[], Any], gradient: Callable[[], Any], budget: Budget) -> Timing:
    """Time `run` and `gradient` in turn, so that what slows the machine down slows both.

    Each round is one untimed gradient (to bring the caches back), one timed, one timed `run`. Call `run` once
    before, to be rid of first-call costs.
    """
    gc.collect()
    gradients: list[float] = []
    times: list[float] = []
    end = time.perf_counter() + budget.seconds
    while len(times) < budget.least or (len(times) < budget.most and time.perf_counter() < end):
        gradient()
        gradients.append(_time(gradient))
        times.append(_time(run))
    ratios = [t / g for t, g in zip(times, gradients, strict=True)]
    quarters = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    seconds, unit = statistics.median(times), statistics.median(gradients)
    return Timing(seconds, unit, seconds / unit, (quarters[0], quarters[2]), len(times))


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
