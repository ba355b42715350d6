"""Invert convolutions in several ways, each in a process of its own, and compare what comes out.

``python -m benchmarks.convolutions.run`` prints Markdown tables and writes ``benchmarks/results/convolutions.json``.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script: make `benchmarks` a package

import torch  # noqa: E402

from benchmarks.convolutions.cases import CASES, QUICK, WAYS, Case  # noqa: E402
from benchmarks.convolutions.tables import render  # noqa: E402
from benchmarks.environments import PEERS, InstallError, default_torch, python_of  # noqa: E402
from benchmarks.run import machine_info, names_among, note  # noqa: E402
from benchmarks.tables import write_between_markers  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "convolutions.json"
PAGE = ROOT / "docs" / "benchmarks_convolutions.md"
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
    parser.add_argument("--ways", type=names_among(WAYS), default=list(WAYS), help=f"some of {', '.join(WAYS)}")
    parser.add_argument("--threads", type=int, default=2, help="of torch (2)")
    parser.add_argument("--quick", action="store_true", help="small pictures")
    parser.add_argument("--write-docs", action="store_true", help=f"put the tables into {PAGE.relative_to(ROOT)}")
    return parser.parse_args(arguments)


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The report, after each case: what ran where, and a result for each case and way."""
    cases = {name: case for name, case in (QUICK if args.quick else CASES).items() if name in args.cases}
    about = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "mode": "quick" if args.quick else "full",
        "threads": args.threads,
        "torch": importlib.metadata.version("torch"),
        "scipy": importlib.metadata.version("scipy"),
        "deepinv": PEERS["deepinv"].package.partition("==")[2],
        "machine": machine_info(),
    }
    pythons = _pythons([way for way in args.ways if any(way in case.ways for case in cases.values())])
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, case in cases.items():
            job = {"case": name, "threads": args.threads, "folder": folder, "set": about["mode"]}
            for way in (way for way in case.ways if way in pythons):
                answer = ask(pythons[way], job | {"way": way}, case.limit)
                note(f"{name}: {way}: {answer.get('reason') or format(answer['prepare'] + answer['first'], '.3g') + ' s'}")
                results.append({"case": name, "way": way, **answer})
            compare_with_dense(case, name, folder, results)
            yield {**about, "results": results}


def _pythons(ways: Sequence[str]) -> dict[str, str]:
    """The interpreter of each way; ways of an environment that cannot be made are left out."""
    found = {}
    for name in ways:
        try:
            found[name] = str(python_of(WAYS[name], default_torch()))
        except InstallError as error:
            note(f"{name}: cannot be installed: {error}")
    return found


def ask(python: str, job: dict[str, Any], limit: float) -> Result:
    """What a worker answers; of status "failed" where it dies or takes too long."""
    command = [python, "-m", "benchmarks.convolutions.worker", json.dumps(job)]
    environment = os.environ | {"OMP_NUM_THREADS": str(job["threads"]), "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"status": "failed", "reason": f"more than {limit:.0f} s"}
    line = next((text for text in reversed(done.stdout.splitlines()) if text.startswith("{")), None)
    if line is not None:
        return json.loads(line)
    last = next((text.strip() for text in reversed(done.stderr.splitlines()) if text.strip()), "no message")
    return {"status": "failed", "reason": f"its process ended with {done.returncode}: {last[:200]}"}


def compare_with_dense(case: Case, name: str, folder: str, results: list[Result]) -> None:
    """Where singular values are dropped, what is right is not the picture but the dense pseudo-inverse's answer."""
    if not case.rtol:
        return
    paths = {way: Path(folder) / f"{name}-{way}.pt" for way in case.ways}
    exact = torch.load(paths["dense"]) if paths["dense"].exists() else None
    for result in results:
        if result["case"] == name and result["status"] == "ok":
            result.pop("error", None)
            if exact is not None and result["way"] != "dense":
                result["error"] = float((torch.load(paths[result["way"]]) - exact).norm() / exact.norm())


if __name__ == "__main__":
    main()
