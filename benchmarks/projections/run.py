"""Random projections of per-sample gradients, each way in a process of its own; prints Markdown tables.

``python benchmarks/projections/run.py`` times one thread; the peers run in environments of their own where these can be made.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script: make `benchmarks` a package

from benchmarks.environments import InstallError, default_torch, python_of  # noqa: E402
from benchmarks.projections.worker import MODELS, SAMPLES, WAYS  # noqa: E402

CASES = ["mlp:512", "cnn:512", "cnn:4096", "embedding:512"]
NAMES = {
    "rows": "the gradients themselves, `J.dense(out=)`",
    "dense": "given gradients @ a stored matrix",
    "gaussian": '`J.project`, "gaussian"',
    "rademacher-4": '`J.project`, "rademacher", 4 signs',
    "rademacher-1": '`J.project`, "rademacher", 1 sign',
    "fjlt": '`J.project`, "fjlt"',
    "trak": "given gradients, TRAK's BasicProjector",
    "dattri": "given gradients, dattri's BasicProjector",
}


def measured(way: str, model: str, k: int, seconds: float) -> dict[str, Any] | str:
    """What the worker found, or the last line of its error."""
    try:
        python = python_of(way, default_torch())
    except InstallError as error:
        return str(error)
    command = [str(python), "-m", "benchmarks.projections.worker", way, model, str(k), "--seconds", str(seconds)]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done.stderr.strip().splitlines()[-1][:120]


def cell(found: dict[str, Any] | str) -> str:
    """Gradients and MiB, or a dash."""
    if isinstance(found, str):
        return "–"
    size = "?" if found["bytes"] is None else f"{found['bytes'] / 2**20:.0f}"
    return f"{found['ratio']:.3g} ({size})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--cases", nargs="+", default=CASES, help=f"model:k, models {', '.join(MODELS)} ({' '.join(CASES)})")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each way")
    args = parser.parse_args(arguments)
    columns = [(model, int(k)) for model, _, k in (case.partition(":") for case in args.cases)]
    print(f"Time in gradients of the batch of {SAMPLES} (growth of memory in MiB), one thread.\n")
    print("| way | " + " | ".join(f"{model}, k = {k}" for model, k in columns) + " |")
    print("|---|" + "---|" * len(columns))
    reasons: dict[str, str] = {}
    for way in args.ways:
        found = [measured(way, model, k, args.seconds) for model, k in columns]
        failed = [result for result in found if isinstance(result, str)]
        if failed:
            reasons[way] = failed[0]
        print(f"| {NAMES[way]} | " + " | ".join(map(cell, found)) + " |", flush=True)
    for way, reason in reasons.items():
        print(f"\n{NAMES[way]}: {reason}")


if __name__ == "__main__":
    main()
