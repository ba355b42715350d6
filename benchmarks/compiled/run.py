"""Time products of kept graphs beside replayed and compiled ones, a process a model; one thread.

``python -m benchmarks.compiled.run`` prints a Markdown table and writes ``benchmarks/results/compiled.json``; `--write-docs`
puts the table into ``docs/benchmarks_compiled.md``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.compiled.cases import CASES, OPERATORS, operator  # noqa: E402
from benchmarks.run import machine_info  # noqa: E402
from benchmarks.tables import write_between_markers  # noqa: E402
from hesse.autodiff.compiled.products import CompiledProducts  # noqa: E402
from hesse.core import tree  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "compiled.json"
PAGE = ROOT / "docs" / "benchmarks_compiled.md"
SECONDS = 0.8  # of processor time, for the rounds of one operator
FEWEST = 15
COLUMNS = [
    "model", "product", "one gradient", "direct, in gradients", "replay faster", "native faster", "to record", "to compile",
    "products until replay pays", "until native pays",
]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--write-docs", action="store_true", help=f"put the table into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.one:
        print(json.dumps(measure(args.one)))
        return
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "torch": torch.__version__,
        "machine": machine_info(),
        "cases": {},
    }
    for name in args.cases:
        print(name, file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "benchmarks.compiled.run", "--one", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        report["cases"][name] = json.loads(done.stdout.splitlines()[-1])
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(report, indent=1))
        if args.write_docs:
            write_between_markers(PAGE, render(report))
    print(render(report))


def measure(name: str) -> dict[str, Any]:
    """All operators of one model."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    case = CASES[name]()
    model, loss, (x, y) = case
    params = list(model.parameters())
    found: dict[str, Any] = {}
    for kind in OPERATORS:
        A = operator(kind, case)
        v = A.in_space.rebuild([torch.randn(shape) for shape in A.in_space.shapes])
        ways = {way: CompiledProducts(A, way) for way in ("replay", "native")}
        expected = product = tree.leaves(A.mv(v))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a way that is not taken is not to be timed
            for C in ways.values():
                for _ in range(5):
                    product = tree.leaves(C.mv(v))
                pairs = zip(product, expected, strict=True)
                if not C.replays or not all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in pairs):
                    raise RuntimeError(f"{name}, {kind}: {C.direct or 'another product'}")
        runs: dict[str, Callable[[], Any]] = {
            "gradient": lambda: torch.autograd.grad(loss(model(x), y), params),
            "direct": lambda A=A, v=v: A.mv(v),
            **{way: lambda C=C, v=v: C.mv(v) for way, C in ways.items()},
        }
        found[kind] = {**in_turn(runs), **{f"{way}_seconds": C.compile_seconds for way, C in ways.items()}}
    return found


def in_turn(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Medians of processor time, the runs in turn, so that what slows the machine slows all of them."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    start = time.process_time()
    while time.process_time() - start < SECONDS or len(times["direct"]) < FEWEST:
        for name, run in runs.items():
            before = time.process_time()
            run()
            times[name].append(time.process_time() - before)
    return {name: statistics.median(values) for name, values in times.items()}


def render(report: dict[str, Any]) -> str:
    """The table."""
    machine = report["machine"]
    head = (
        f"{report['date']}; {machine['processor']}, {machine['cores']} cores, Python {machine['python']}, "
        f"torch {report['torch']}; float32, one thread, medians of processor time, load average at the start "
        f"{machine['load']:.1f}."
    )
    lines = [
        head,
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]
    for name, kinds in report["cases"].items():
        for kind, r in kinds.items():
            gains = [f"{r['direct'] / r[way]:.1f}x" for way in ("replay", "native")]
            took = f"{r['replay_seconds'] * 1e3:.0f} ms", f"{r['native_seconds']:.1f} s"
            units = f"{r['gradient'] * 1e6:.0f} µs", f"{r['direct'] / r['gradient']:.2f}"
            cells = [name, OPERATORS[kind], *units, *gains, *took, pays(r, "replay"), pays(r, "native")]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def pays(result: dict[str, float], way: str) -> str:
    """How many products win back what recording and compiling took."""
    gain = result["direct"] - result[way]
    if result["direct"] < 1.05 * result[way]:
        return "never"
    count = result[f"{way}_seconds"] / gain
    return f"{count:.2g}" if count < 100 else f"{round(count, -2):,.0f}" if count >= 1000 else f"{round(count, -1):.0f}"


if __name__ == "__main__":
    main()
