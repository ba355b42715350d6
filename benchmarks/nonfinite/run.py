"""Plant NaNs, ask who names their line; run harmless programs, ask who cries; time what watching costs.

``python benchmarks/nonfinite/run.py`` prints Markdown tables and writes ``benchmarks/results/nonfinite.json``.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script: make `benchmarks` a package

from benchmarks.measure import Budget  # noqa: E402
from benchmarks.nonfinite.sets import BENIGN, FAULTS, FROZEN  # noqa: E402
from benchmarks.nonfinite.steps import STEPS  # noqa: E402
from benchmarks.nonfinite.tables import render  # noqa: E402
from benchmarks.nonfinite.ways import WAYS  # noqa: E402
from benchmarks.run import machine_info, measure_library, names_among, note  # noqa: E402
from benchmarks.tables import write_between_markers  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "nonfinite.json"
PAGE = ROOT / "docs" / "benchmarks_nonfinite.md"
FULL = Budget(seconds=10.0, least=20, most=200)
QUICK = Budget(seconds=2.0, least=5, most=40)
WORKER = "benchmarks.nonfinite.worker"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print, write."""
    args = _parse(arguments)
    report = measure(args)
    args.result.parent.mkdir(parents=True, exist_ok=True)
    args.result.write_text(json.dumps(report, indent=1))
    text = render(report)
    print(text)
    if args.write_docs:
        write_between_markers(PAGE, text)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=names_among(TABLES), default=list(TABLES), help=f"some of {', '.join(TABLES)}")
    parser.add_argument("--ways", type=names_among(WAYS), default=list(WAYS), help=f"some of {', '.join(WAYS)}")
    parser.add_argument("--names", type=names_among([*FAULTS, *BENIGN, *STEPS]), help="only these rows")
    parser.add_argument("--open-only", action="store_true", help="nothing of the frozen sets")
    parser.add_argument("--quick", action="store_true", help="time few steps")
    parser.add_argument("--result", type=Path, default=RESULT, help="the JSON to write")
    parser.add_argument("--write-docs", action="store_true", help=f"put the tables into {PAGE.relative_to(ROOT)}")
    return parser.parse_args(arguments)


TABLES: dict[str, Sequence[str]] = {"faults": list(FAULTS), "benign": list(BENIGN), "costs": list(STEPS)}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The report: what ran where, and one result for each row and way of each table."""
    about = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "mode": "quick" if args.quick else "full",
        "torch": importlib.metadata.version("torch"),
        "machine": machine_info(),
    }
    tables = []
    for table in args.tables:
        rows = [row for row in TABLES[table] if not (args.names and row not in args.names)]
        rows = [row for row in rows if not (args.open_only and row in FROZEN)]
        if rows:
            job = {"model": table, "quantities": rows, "threads": 1, "worker": WORKER}
            tables.append(_measured(job | {"budget": asdict(QUICK if args.quick else FULL)}, args.ways))
    return {**about, "tables": tables}


def _measured(job: dict[str, Any], ways: Sequence[str]) -> dict[str, Any]:
    results = []
    for way in ways:
        for result in measure_library(way, {"python": sys.executable}, job):
            if "reason" in result:
                note(f"{job['model']}: {way}: {result['quantity']}: {result['status']}: {result['reason']}")
            results.append({"library": way, **result})
    return {"model": job["model"], "quantities": job["quantities"], "results": results}


if __name__ == "__main__":
    main()
