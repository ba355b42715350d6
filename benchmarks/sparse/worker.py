"""Measures one way, in a process of its own, as it is asked to.

``python -m benchmarks.sparse.worker '{"way": ..., "case": ..., "threads": 2}'`` reads requests from standard input and answers
each by one line of JSON. A request is a line like ``{"do": "detect", "n": 1000, ...}``; what can be done is in `Worker`.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.sparse.cases import CASES, point
from benchmarks.sparse.reference import TOLERANCE, read
from benchmarks.sparse.ways import way

WARM_UP = 40  # unknowns of the derivative that pays what a process pays once
_WARM_UP, _WARM_SECONDS = 7, 2.0  # calls that are not counted, and when there have been enough of them


class TooLongError(Exception):
    """A measurement passed its limit."""


class Worker:
    """The stages of one way on one case; keeps what is prepared.

    Args:
        job: the way, the case, and the number of threads.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.name, self.case = job["case"], CASES[job["case"]]
        self.way = way(job["way"])
        self._prepared: dict[int, Any] = {}
        self._patterns: dict[int, Any] = {}
        self._warm_up()

    def _warm_up(self) -> None:
        """Imports that wait for a first use, compilers, caches: of another, small function of the same kind."""
        other = "burgers" if self.case.of == "jacobian" else "volatility"
        case, x = CASES[other], self.way.at(point(other, WARM_UP))
        f = self.way.problems[other](WARM_UP)
        self.way.finish(self.way.evaluator(case, f, x)(x))

    def _fresh(self, n: int) -> tuple[Any, Any]:
        """A function that nobody has seen yet, and its point."""
        return self.way.problems[self.name](n), self.way.at(point(self.name, n))

    def function(self, n: int, request: dict[str, Any]) -> dict[str, Any]:
        """One run of the function as its library runs it."""
        f, x = self._fresh(n)
        return timed(lambda: self.way.finish(f(x)), request["seconds"])

    def detect(self, n: int, request: dict[str, Any]) -> dict[str, Any]:
        """The pattern alone, each time of a fresh function."""
        assert self.way.detect
        times = []
        for _ in range(request["repeats"]):
            f, x = self._fresh(n)
            start = time.perf_counter()
            self._patterns[n] = self.way.detect(self.case, f, x)
            times.append(time.perf_counter() - start)
            if sum(times) > request["seconds"]:
                break
        return summary(times)

    def color(self, n: int, request: dict[str, Any]) -> dict[str, Any]:
        """The coloring alone, of the pattern that was detected."""
        assert self.way.color and self.way.describe
        colored, times = None, []
        for _ in range(request["repeats"]):
            start = time.perf_counter()
            colored = self.way.color(self.case, self._patterns[n])
            times.append(time.perf_counter() - start)
            if sum(times) > request["seconds"]:
                break
        return summary(times) | self.way.describe(colored)

    def first(self, n: int, request: dict[str, Any]) -> dict[str, Any]:
        """From a fresh function to its first matrix, which is compared with the reference."""
        times, result = [], None
        for _ in range(request["repeats"]):
            result = None
            f, x = self._fresh(n)
            gc.collect()
            start = time.perf_counter()
            evaluate = self.way.evaluator(self.case, f, x)
            result = self.way.finish(evaluate(x))
            times.append(time.perf_counter() - start)
            self._prepared[n] = evaluate, x
            if sum(times) > request["seconds"]:
                break
        return summary(times) | self._compared(result, n, request["folder"])

    def prepared(self, n: int, request: dict[str, Any]) -> dict[str, Any]:
        """Calls after the first, at points that differ."""
        evaluate, x = self._prepared[n]
        points = [x, x + 0.125, x - 0.125]
        calls = iter(range(sys.maxsize))
        found = timed(lambda: self.way.finish(evaluate(points[next(calls) % 3])), request["seconds"])
        return found | self._compared(self.way.finish(evaluate(x)), n, request["folder"])

    def dense(self, n: int, request: dict[str, Any]) -> dict[str, Any]:
        """Dense derivatives; there is nothing to prepare but the size of chunks, whose search is not counted."""
        f, x = self._fresh(n)
        evaluate = self.way.evaluator(self.case, f, x)
        start = time.perf_counter()
        result = self.way.finish(evaluate(x))
        times = [time.perf_counter() - start]
        found = self._compared(result, n, request["folder"])
        while sum(times) < request["seconds"] and len(times) < request["repeats"]:
            result = None
            start = time.perf_counter()
            result = self.way.finish(evaluate(x))
            times.append(time.perf_counter() - start)
        return summary(times) | found

    def whole(self, n: int, request: dict[str, Any]) -> dict[str, Any]:
        """As `first`, with the process's peak memory before and after; to be the only request of a process."""
        before = peak_memory()
        found = self.first(n, request | {"repeats": 1})
        return found | {"before": before, "peak": peak_memory()}

    def _compared(self, result: Any, n: int, folder: str) -> dict[str, Any]:
        value, matrix = result
        reference = read(folder, self.name, n)
        error = reference.error(np.asarray(value), *self.way.products(matrix, reference.v, reference.u))
        return {"error": error} if error < TOLERANCE else {"error": error, "status": "wrong"}


def timed(run: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Times of single calls, at least three, for so long, after a few in which records and checks are made."""
    start = time.perf_counter()
    for _ in range(_WARM_UP):
        run()
        if time.perf_counter() - start > _WARM_SECONDS:
            break
    gc.collect()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - start)
        del result  # freeing it is not part of the work
    return summary(times)


def summary(times: list[float]) -> dict[str, Any]:
    """The median, and how many there were."""
    return {"status": "ok", "seconds": statistics.median(times), "rounds": len(times)}


def peak_memory() -> int:
    """Bytes that the process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def limited(seconds: float) -> Any:
    """Raise `TooLongError` after so long, as soon as Python runs."""

    def stop(*_: Any) -> None:
        raise TooLongError(f"more than {seconds:.0f} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def answer(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    """What came out, or why nothing did."""
    try:
        with limited(request["patience"]):
            return getattr(worker, request["do"])(request["n"], request)
    except TooLongError as error:
        return {"status": "slow", "reason": str(error)}
    except Exception as error:
        return {"status": "failed", "reason": f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]}


def main(job: dict[str, Any]) -> None:
    """Say ready, then answer requests until there are no more."""
    keep_to(job["threads"])
    if job["way"] not in ("asdex", "jax"):
        import torch

        torch.set_num_threads(job["threads"])
    worker = Worker(job)
    print(json.dumps({"status": "ready"}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(worker, json.loads(line))), flush=True)


def keep_to(cores: int) -> None:
    """Let the process see so many cores and no more, where the system can: XLA takes all that it finds."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
