"""Time hesse's quantities on a GPU in units of one gradient there, with the peak of the allocator.

``python -m benchmarks.gpu.run`` needs a GPU and says so where there is none. Each time is that between two CUDA events around
a run, the median over runs; memory is `torch.cuda.max_memory_allocated` less what was allocated before. Results are compared
with loops over single gradients in float64 on the CPU before they are timed. ``--device cpu`` measures the same by the clock
and the growth of resident memory, to try the program out.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.agreement import disagreement  # noqa: E402
from benchmarks.libraries import hesse as tasks  # noqa: E402
from benchmarks.measure import peak_growth  # noqa: E402
from benchmarks.models import Problem, make_problem  # noqa: E402
from benchmarks.quantities import (  # noqa: E402
    FEW_RUNS,
    FIRST,
    FUNCTIONS,
    MAX_NORM,
    MODEL_TITLES,
    SAMPLED,
    TITLES,
    as_blocks,
    quantities_of,
)
from benchmarks.reference import references  # noqa: E402
from benchmarks.run import names_among  # noqa: E402
from benchmarks.tables import write_between_markers  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
PAGE = ROOT / "docs" / "benchmarks_gpu.md"
NO_GPU = "The GPU benchmark needs a GPU, and torch finds none (torch.cuda.is_available() is False)."
DEFAULT = ["mlp", "lenet", "transformer", "3c3d", "resnet18"]
SECONDS = 1.0
FEWEST = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure, print, write; 1 where there is no GPU."""
    args = _parse(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 1
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "CPU",
        "models": {},
    }
    for name in args.models:
        wanted = [q for q in quantities_of(name) if q in args.quantities and q in tasks.TASKS]
        report["models"][name] = measure(name, wanted, args.device)
    table = render(report)
    print(table)
    if args.device == "cuda":
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(report, indent=1))
        if args.write_docs:
            write_between_markers(PAGE, table)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = {name: title for name, title in MODEL_TITLES.items() if name != FUNCTIONS}
    parser.add_argument("--models", type=names_among(models), default=DEFAULT, help=f"some of {', '.join(models)}")
    parser.add_argument("--quantities", type=names_among(TITLES), default=list(TITLES), help="some of the main benchmark's")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--write-docs", action="store_true", help=f"put the table into {PAGE.relative_to(ROOT)}")
    return parser.parse_args(arguments)


def measure(name: str, quantities: Sequence[str], device: str) -> dict[str, Any]:
    """Gradient and quantities of one model: seconds, bytes, or why there are none."""
    problem = make_problem(name)
    right = references(problem, quantities)
    if "clipped_sum" in quantities:
        problem = replace(problem, max_norm=float(right[MAX_NORM][""]))
    problem = moved(problem, device)
    seconds, memory = timed(problem.gradient, device)
    found: dict[str, Any] = {"gradient": {"seconds": seconds, "memory": memory}}
    for quantity in quantities:
        print(f"{name}: {TITLES[quantity]}", file=sys.stderr, flush=True)
        try:
            found[quantity] = quantity_of(problem, quantity, right[quantity], device)
        except Exception as error:  # goes into the table
            found[quantity] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"}
    return found


def quantity_of(problem: Problem, quantity: str, right: dict[str, Any], device: str) -> dict[str, Any]:
    """Compare, then time."""
    asked = problem.head(FIRST.get(quantity, len(problem.inputs)))
    with torch.device(device):  # where the tasks make their buffers
        run, read = tasks.TASKS[quantity](asked)
        shapes = {name: tuple(p.shape) for name, p in asked.params.items()}
        if quantity not in SAMPLED:  # of drawn ones one draw says little
            blocks = {key: block.cpu() for key, block in as_blocks(quantity, read(run()), shapes).items()}
            error, allowed = disagreement(quantity, blocks, right)
            if not error < allowed:
                return {"failed": f"wrong: relative error {error:.1g}"}
        seconds, memory = timed(run, device, fewest=3 if quantity in FEW_RUNS else FEWEST)
    return {"seconds": seconds, "memory": memory}


def moved(problem: Problem, device: str) -> Problem:
    """The problem on a device."""
    vectors = {name: block.to(device) for name, block in problem.vectors.items()}
    return replace(
        problem,
        model=problem.model.to(device),
        inputs=problem.inputs.to(device),
        targets=problem.targets.to(device),
        vectors=vectors,
    )


def timed(run: Callable[[], Any], device: str, *, fewest: int = FEWEST) -> tuple[float, int]:
    """Median seconds of a run, and the bytes by which memory grew at most."""
    for _ in range(2):
        run()
    if device == "cpu":
        clock = [_by_clock(run) for _ in range(fewest)]
        return statistics.median(clock), peak_growth(run) or 0
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    memory = torch.cuda.max_memory_allocated() - before
    times: list[float] = []
    while len(times) < fewest or sum(times) < SECONDS:
        times.append(_by_events(run))
    return statistics.median(times), memory


def _by_clock(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _by_events(run: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def render(report: dict[str, Any]) -> str:
    """A table a model: rows are quantities, in gradients and bytes."""
    parts = [f"{report['date']}; {report['device']}, torch {report['torch']}; float32 without TF32."]
    for name, results in report["models"].items():
        unit = results["gradient"]
        parts.append(f"### {MODEL_TITLES[name]}")
        parts.append(f"One gradient takes {unit['seconds'] * 1e3:.3g} ms and {unit['memory'] / 2**20:.0f} MiB.")
        rows = ["| quantity | gradients | peak |", "|---|---|---|"]
        for quantity, result in results.items():
            if quantity == "gradient":
                continue
            cells = result.get("failed") or f"{result['seconds'] / unit['seconds']:.2f} | {result['memory'] / 2**20:.0f} MiB"
            rows.append(f"| {TITLES[quantity]} | {cells} |{' - |' if 'failed' in result else ''}")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
