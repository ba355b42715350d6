"""Run hesse's checks and those of its peers on planted bugs, each checker in processes of its own.

``python benchmarks/checks/run.py`` prints Markdown tables and writes ``benchmarks/results/checks.json``.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script: make `benchmarks` a package

from benchmarks.checks.sets import DTYPES, SETS, Case, cases  # noqa: E402
from benchmarks.checks.tables import missed, render  # noqa: E402
from benchmarks.checks.times import times_of_checks  # noqa: E402
from benchmarks.checks.ways import OWN_ENVIRONMENT, TITLES  # noqa: E402
from benchmarks.environments import InstallError, default_torch, python_of  # noqa: E402
from benchmarks.run import machine_info, measure_library, names_among, note  # noqa: E402
from benchmarks.tables import write_between_markers  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "checks.json"
PAGE = ROOT / "docs" / "benchmarks_checks.md"
WORKER = "benchmarks.checks.worker"
CHUNK = 100  # cases told to one worker process


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, print, write."""
    args = _parse(arguments)
    report = measure(args)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=1))
    table = render(report)
    print(table)
    if args.missed:
        Path(args.missed).write_text(missed(report, [way for way in args.ways if way.startswith("hesse")]))
    if args.write_docs:
        write_between_markers(PAGE, table)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", type=names_among(TITLES), default=list(TITLES), help=f"some of {', '.join(TITLES)}")
    parser.add_argument("--sets", type=names_among(SETS), default=list(SETS), help=f"some of {', '.join(SETS)}")
    parser.add_argument("--dtypes", type=names_among(DTYPES), default=list(DTYPES), help=f"some of {', '.join(DTYPES)}")
    parser.add_argument("--only", type=lambda text: text.split(","), help="names of bugs or kinds, joined by commas")
    parser.add_argument("--limit", type=float, default=90.0, help="seconds that a check may take (90)")
    parser.add_argument("--reuse", action="store_true", help="keep the results of other checkers in the last report")
    parser.add_argument("--no-times", action="store_true", help="do not time hesse's checks of a small layer and of LeNet")
    parser.add_argument("--missed", help="a file for what hesse misses in the open set, by name")
    parser.add_argument("--torch", default=default_torch(), help="what pip installs as PyTorch for the peers")
    parser.add_argument("--write-docs", action="store_true", help=f"put the tables into {PAGE.relative_to(ROOT)}")
    return parser.parse_args(arguments)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The report: one result for each checker and case."""
    chosen = cases(args.sets, args.dtypes, args.only)
    results = [r for way in args.ways for r in _measured(way, chosen, args)]
    results += _kept(args, chosen) if args.reuse else []
    order = list(TITLES)
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "torch": importlib.metadata.version("torch"),
        "machine": machine_info(),
        "results": sorted(results, key=lambda r: order.index(r["library"])),
        "times": {} if args.no_times else times_of_checks(),
    }


def _kept(args: argparse.Namespace, chosen: Sequence[Case]) -> list[dict[str, Any]]:
    """Results of the last report that are not measured again, of cases that still exist."""
    if not RESULT.exists():
        return []
    again = {(way, str(case)) for way in args.ways for case in chosen}
    known = {str(case) for case in cases(list(SETS), list(DTYPES))}
    return [
        r
        for r in json.loads(RESULT.read_text())["results"]
        if r["quantity"] in known and (r["library"], r["quantity"]) not in again
    ]


def _measured(way: str, chosen: Sequence[Case], args: argparse.Namespace) -> list[dict[str, Any]]:
    try:
        python = python_of(way, args.torch) if way in OWN_ENVIRONMENT else Path(sys.executable)
    except InstallError as error:
        note(f"{TITLES[way]}: cannot be installed: {error}")
        return []
    results: list[dict[str, Any]] = []
    for start in range(0, len(chosen), CHUNK):
        note(f"{TITLES[way]}: {start} of {len(chosen)}")
        names = [str(case) for case in chosen[start : start + CHUNK]]
        job = {"model": "checks", "quantities": names, "threads": 1, "worker": WORKER, "limit": args.limit}
        results += [{"library": way, **r} for r in measure_library(way, {"python": str(python)}, job)]
    return results


if __name__ == "__main__":
    main()
