"""Time sparse derivatives, each way in a process of its own, and compare them before they are timed.

``python -m benchmarks.sparse.run`` prints Markdown tables and writes ``benchmarks/results/sparse.json``.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script: make `benchmarks` a package

from benchmarks.environments import PEERS, InstallError, default_torch, python_of  # noqa: E402
from benchmarks.run import machine_info, names_among, note  # noqa: E402
from benchmarks.sparse.cases import CASES, LARGE, Case  # noqa: E402
from benchmarks.sparse.process import Process  # noqa: E402
from benchmarks.sparse.tables import render  # noqa: E402
from benchmarks.sparse.ways import MODULES, STAGED  # noqa: E402
from benchmarks.tables import write_between_markers  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "sparse.json"
PAGE = ROOT / "docs" / "benchmarks_sparse.md"
FULL = {"repeats": 5, "seconds": 0.3, "patience": 150.0}
QUICK = {"repeats": 2, "seconds": 0.05, "patience": 30.0}
ROUNDS = {"full": 3, "quick": 2}
DENSE = ("reverse", "forward", "jax")
LARGEST = {"reverse": 10_000, "forward": 9_000, "jax": 3_200}  # unknowns at which a dense way takes part
Result = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print, write."""
    args = _parse(arguments)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {}
    for report in measure(args):
        RESULT.write_text(json.dumps(report, indent=1))  # after each case, so that a run that is cut short leaves something
    text = render(report)
    print(text)
    if args.write_docs:
        write_between_markers(PAGE, text)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=names_among(CASES), default=list(CASES), help=f"some of {', '.join(CASES)}")
    parser.add_argument("--ways", type=names_among(MODULES), default=list(MODULES), help=f"some of {', '.join(MODULES)}")
    parser.add_argument("--largest", type=int, default=10**9, help="leave out sizes above")
    parser.add_argument("--threads", type=int, default=2, help="of torch, and cores that a process may use (2)")
    parser.add_argument("--quick", action="store_true", help="few repeats, nothing compiled natively, up to 2,100 unknowns")
    parser.add_argument("--write-docs", action="store_true", help=f"put the tables into {PAGE.relative_to(ROOT)}")
    args = parser.parse_args(arguments)
    if args.quick:
        args.largest = min(args.largest, 2_100)
        args.ways = [name for name in args.ways if name != "native"]
    return args


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The report, after each case: what ran where, and a result for each case, size, way and stage."""
    mode = "quick" if args.quick else "full"
    about = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "mode": mode,
        "threads": args.threads,
        "torch": importlib.metadata.version("torch"),
        "asdex": PEERS["jax"].requirements[-1],
        "machine": machine_info(),
    }
    pythons = _pythons(args.ways)
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.cases:
            runner = _Runner(name, pythons, args.threads, (QUICK if args.quick else FULL) | {"folder": folder}, ROUNDS[mode])
            sizes = [n for n in CASES[name].sizes if n <= args.largest]
            results += [{"case": name, **result} for result in runner.run(sizes)]
            yield {**about, "results": results}


def _pythons(ways: Sequence[str]) -> dict[str, str]:
    """The interpreter of each way; ways of an environment that cannot be made are left out."""
    found = {}
    for name in ways:
        try:
            found[name] = str(python_of("jax" if MODULES[name] == "ways_jax" else "hesse", default_torch()))
        except InstallError as error:
            note(f"{name}: cannot be installed: {error}")
    return found


class _Runner:
    """One case: its workers, all alive at once and asked in turn, so that what slows the machine slows all of them."""

    def __init__(self, name: str, pythons: dict[str, str], threads: int, request: Result, rounds: int) -> None:
        self.name, self.case, self.request, self.rounds = name, CASES[name], request, rounds
        self._jobs = {way: (python, {"way": way, "case": name, "threads": threads}) for way, python in pythons.items()}
        self._workers = {way: Process(*job) for way, job in self._jobs.items()}

    def run(self, sizes: Sequence[int]) -> Iterator[Result]:
        from benchmarks.sparse.reference import write

        for n in sizes:
            write(self.request["folder"], self.name, n)
            yield from self._size(n)
        for worker in self._workers.values():
            worker.close()
        if self.case.whole in sizes:
            yield from self._whole(self.case.whole)

    def _size(self, n: int) -> Iterator[Result]:
        if "hesse" in self._workers:
            yield self._ask("hesse", "function", n)
        for what in ("detect", "color"):
            for way in (w for w in STAGED if w in self._workers and offered(self.name, self.case, w, what, n)):
                yield self._ask(way, what, n)
        ready = []
        for way in (w for w in ("hesse", "native", "asdex") if w in self._workers):
            if offered(self.name, self.case, way, "first", n):
                first = self._ask(way, "first", n)
                ready += [way] if first["status"] == "ok" else []
                yield first
        yield from self._prepared(ready, n)
        for way in (w for w in DENSE if w in self._workers and offered(self.name, self.case, w, "dense", n)):
            yield self._ask(way, "dense", n)

    def _prepared(self, ways: Sequence[str], n: int) -> Iterator[Result]:
        """Calls in turns: the median of the rounds' medians, and how far these lie apart."""
        rounds = [{way: self._ask(way, "prepared", n) for way in ways} for _ in range(self.rounds)]
        for way in ways:
            answers = [answers[way] for answers in rounds]
            bad = next((a for a in answers if a["status"] != "ok"), None)
            seconds = [a["seconds"] for a in answers if a["status"] == "ok"]
            if bad is None:
                yield answers[0] | {"seconds": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}
            else:
                yield bad

    def _whole(self, n: int) -> Iterator[Result]:
        for way in (w for w in STAGED if w in self._jobs and offered(self.name, self.case, w, "first", n)):
            worker = Process(*self._jobs[way])
            yield self._ask(way, "whole", n, worker)
            worker.close()

    def _ask(self, way: str, what: str, n: int, worker: Process | None = None) -> Result:
        answer = (worker or self._workers[way]).ask({"do": what, "n": n, **self.request})
        note(
            f"{self.name} {n:,}: {way}: {what}: {answer.get('reason') or format(answer.get('seconds', 0) * 1e3, '.3g') + ' ms'}"
        )
        return {"n": n, "way": way, "what": what, **answer}


def offered(name: str, case: Case, way: str, what: str, n: int) -> bool:
    """Whether a way takes part: asdex above 200,000 unknowns only in one detection, dense and compiled ways as cases say."""
    if way == "native":
        return n in case.compiled
    if way in DENSE:
        return n in case.dense and n <= LARGEST[way]
    return way != "asdex" or n <= 2 * LARGE or (what == "detect" and name == "burgers")


if __name__ == "__main__":
    main()
