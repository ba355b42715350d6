"""Every quantity without a budget, and under parts of what it took then, each in a process of its own.

``python -m benchmarks.memory.run`` prints a Markdown table and writes ``benchmarks/results/memory.json``. It ends with 1 where
a result under a budget is another one than without.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.memory.cases import CASES  # noqa: E402
from benchmarks.memory.tables import LEAST_BUDGET, others, render  # noqa: E402
from benchmarks.run import machine_info, names_among  # noqa: E402
from benchmarks.tables import write_between_markers  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "memory.json"
PAGE = ROOT / "docs" / "benchmarks_memory.md"
PARTS = (2, 4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure, print, write; 1 where results differ from those without a budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=names_among(CASES), default=list(CASES), help="some of the quantities")
    parser.add_argument("--parts", type=int, nargs="+", default=PARTS, help="budgets: parts of what it takes without one (2 4)")
    parser.add_argument("--write-docs", action="store_true", help=f"put the table into {PAGE.relative_to(ROOT)}")
    args = parser.parse_args(arguments)
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine_info(),
        "parts": list(args.parts),
        "results": [],
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    for name in args.cases:
        report["results"].append(_measured(name, args.parts))
        print(json.dumps(report["results"][-1]), file=sys.stderr, flush=True)
        RESULT.write_text(json.dumps(report, indent=1))
    text = render(report)
    print(text)
    if args.write_docs:
        write_between_markers(PAGE, text)
    return int(bool(others(report)))


def _measured(name: str, parts: Sequence[int]) -> dict[str, Any]:
    """A quantity without a budget, under parts of what it took, and under the least that an error named."""
    free = _run(name, 0)
    found: dict[str, Any] = {"name": name, "free": free, "budgets": []}
    if "growth" not in free:
        return found
    tried: set[int] = set()
    for part in parts:
        budget = max(free["growth"] // part, LEAST_BUDGET)
        while budget not in tried:
            tried.add(budget)
            result = _run(name, budget)
            found["budgets"].append({"budget": budget, **_compared(result, free)})
            if result["status"] == "refused" and budget < result["least"] <= 2 * free["growth"]:
                budget = result["least"]
    for result in (found["free"], *found["budgets"]):
        result.pop("prints", None)
    return found


def _run(name: str, budget: int) -> dict[str, Any]:
    worker = Path(__file__).with_name("worker.py")
    done = subprocess.run([sys.executable, str(worker), name, str(budget)], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"status": "failed", "error": done.stderr.strip().splitlines()[-1:]}
    return json.loads(done.stdout.splitlines()[-1])


def _compared(result: dict[str, Any], free: dict[str, Any]) -> dict[str, Any]:
    """With the largest relative difference from what came out without a budget."""
    if result["status"] != "done":
        return result
    pairs = zip(result["prints"], free["prints"], strict=True)
    difference = max((abs(a[0] - b[0]) / max(b[1], 1e-300) for a, b in pairs), default=0.0)
    return {**result, "difference": difference}


if __name__ == "__main__":
    raise SystemExit(main())
