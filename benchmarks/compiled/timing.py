"""Ways timed in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

SECONDS = 0.8  # of processor time, for the rounds of one comparison
FEWEST = 15


def in_turn(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Medians of processor time, the runs in turn, so that what slows the machine slows all of them."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    start = time.process_time()
    while time.process_time() - start < SECONDS or min(map(len, times.values())) < FEWEST:
        for name, run in runs.items():
            before = time.process_time()
            run()
            times[name].append(time.process_time() - before)
    return {name: statistics.median(values) for name, values in times.items()}
