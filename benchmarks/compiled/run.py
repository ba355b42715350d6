"""Time products of kept graphs, and per-sample quantities, beside replayed and compiled ones, a process a model; one thread.

``python -m benchmarks.compiled.run`` prints Markdown tables and writes ``benchmarks/results/compiled.json``; `--write-docs`
puts them into ``docs/benchmarks_compiled.md``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.compiled.cases import CASES, OPERATORS, operator  # noqa: E402
from benchmarks.compiled.rows import measure_peer, measure_rows  # noqa: E402
from benchmarks.compiled.table import render  # noqa: E402
from benchmarks.compiled.timing import in_turn  # noqa: E402
from benchmarks.run import machine_info  # noqa: E402
from benchmarks.tables import write_between_markers  # noqa: E402
from hesse.autodiff.compiled.products import CompiledProducts  # noqa: E402
from hesse.core import tree  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "compiled.json"
PAGE = ROOT / "docs" / "benchmarks_compiled.md"
PARTS = {"products": ["products"], "rows": ["rows", "peer"]}  # which `MEASURES` make up a part


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES), metavar="CASE", help="some models")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="the others stay as the last run left them")
    parser.add_argument("--write-docs", action="store_true", help=f"put the tables into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.one:
        print(json.dumps(MEASURES[args.one[0]](args.one[1])))
        return
    report = known()
    for part in args.parts:
        before = report.get(part, {}).get("cases", {})
        report[part] = {
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "torch": torch.__version__,
            "machine": machine_info(),
            "cases": {name: before[name] for name in CASES if name in before},
        }
        for name in args.cases:
            print(f"{part}: {name}", file=sys.stderr, flush=True)
            report[part]["cases"][name] = joined(*(alone(measure, name) for measure in PARTS[part]))
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            RESULTS.write_text(json.dumps(report, indent=1))
            if args.write_docs:
                write_between_markers(PAGE, render(report))
    print(render(report))


def known() -> dict[str, Any]:
    """What the last run left; nothing if there was none."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return {part: found[part] for part in PARTS if part in found} or ({"products": found} if "cases" in found else {})


def alone(measure: str, name: str) -> dict[str, Any]:
    """One of `MEASURES` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.compiled.run", "--one", measure, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def joined(first: dict[str, Any], *others: dict[str, Any]) -> dict[str, Any]:
    """What several processes measured of the same kinds, which have to agree.

    Raises:
        RuntimeError: two libraries give different numbers.
    """
    for other in others:
        for kind, result in other.items():
            mine, its = first[kind].get("sum", 0.0), result.get("sum", first[kind].get("sum", 0.0))
            if abs(mine - its) > 1e-3 * abs(mine):
                raise RuntimeError(f"{kind}: {mine} and {its}")
            first[kind] = {**result, **first[kind]}
    return first


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


MEASURES: dict[str, Callable[[str], dict[str, Any]]] = {"products": measure, "rows": measure_rows, "peer": measure_peer}

if __name__ == "__main__":
    main()
