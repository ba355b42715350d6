"""Time functional autograd, each way in a process of its own, and count what each gets right.

``python benchmarks/functional/run.py`` prints Markdown tables and writes ``benchmarks/results/functional.json``.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script: make `benchmarks` a package

from benchmarks.functional.rows import COLUMNS, MICRO_ROWS, STEP_ROWS  # noqa: E402
from benchmarks.functional.tables import render  # noqa: E402
from benchmarks.measure import Budget  # noqa: E402
from benchmarks.run import machine_info, measure_library, names_among, note  # noqa: E402
from benchmarks.tables import write_between_markers  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "functional.json"
PAGE = ROOT / "docs" / "benchmarks_functional.md"
FULL = Budget(seconds=1.0, least=20, most=100)
QUICK = Budget(seconds=0.1, least=3, most=10)
WORKER = "benchmarks.functional.worker"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print, write."""
    args = _parse(arguments)
    report = measure(args)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=1))
    text = render(report)
    print(text)
    if args.write_docs:
        write_between_markers(PAGE, text)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    ways = list(dict.fromkeys(way for columns in COLUMNS.values() for way in columns))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micro", type=names_among(MICRO_ROWS), help=f"some of {', '.join(MICRO_ROWS)}")
    parser.add_argument("--steps", type=names_among(STEP_ROWS), help=f"some of {', '.join(STEP_ROWS)}")
    parser.add_argument("--ways", type=names_among(ways), default=ways, help=f"some of {', '.join(ways)}")
    parser.add_argument("--threads", type=_counts, default=[1, 2], help="threads of the training steps (1,2)")
    parser.add_argument("--programs", type=int, default=0, help="how many derivative programs to count (0)")
    parser.add_argument("--quick", action="store_true", help="few repeats; nothing that compiles natively unless named")
    parser.add_argument("--write-docs", action="store_true", help=f"put the tables into {PAGE.relative_to(ROOT)}")
    args = parser.parse_args(arguments)
    if args.micro is None and args.steps is None:
        args.micro, args.steps = ([], []) if args.programs else (list(MICRO_ROWS), list(STEP_ROWS))
    if args.quick and args.ways == ways:
        args.ways = [way for way in ways if not way.startswith(("compile", "native", "unguarded"))]
    return args


def _counts(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The report: what ran where, and one result for each row and column of each table."""
    about = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "mode": "quick" if args.quick else "full",
        "torch": importlib.metadata.version("torch"),
        "machine": machine_info(),
    }
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        common = {"worker": WORKER, "budget": asdict(QUICK if args.quick else FULL), "folder": folder}
        if args.micro:
            tables.append(_measured({"model": "micro", "quantities": args.micro, "threads": 1, **common}, args.ways, cold=True))
        for number, threads in enumerate(args.threads if args.steps else []):
            job = {"model": "steps", "quantities": args.steps, "threads": threads, **common}
            tables.append(_measured(job, args.ways, cold=not number))
        if args.programs:
            from benchmarks.functional.suite import cases

            job = {"model": "suite", "quantities": cases(args.programs), "threads": 1, **common}
            tables.append(_measured(job, args.ways, cold=False))
    return {**about, "tables": tables}


def _measured(job: dict[str, Any], ways: Sequence[str], *, cold: bool) -> dict[str, Any]:
    """One table. Each way has a folder of its own for compiled code, empty the first time the table is measured."""
    results = []
    for way in COLUMNS[job["model"]]:
        if way in ways:
            cache = str(Path(job["folder"]) / f"{job['model']}-{way}")
            for result in measure_library(way, {"python": sys.executable}, job | {"cache": cache}):
                if "reason" in result:
                    note(f"{job['model']}: {way}: {result['quantity']}: {result['status']}: {result['reason']}")
                results.append({"library": way, **result})
    kept = {key: job[key] for key in ("model", "quantities", "threads")}
    return {**kept, "cold": cold, "results": results}


if __name__ == "__main__":
    main()
