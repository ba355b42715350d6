"""The Gram matrix of the per-sample gradients of a model of about ten million parameters, within a memory budget.

``python -m benchmarks.gram.run --samples 10000`` prints what it took beside an estimate of the dense way (all rows written,
then one matrix product), and writes ``benchmarks/results/gram_<model>.json``. The whole takes about 15 minutes for the ResNet
on two free cores, and less than a minute for the MLP; ``--samples 1024`` shows the rates in half a minute.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import hesse  # noqa: E402
from benchmarks.gram.models import MODELS, images  # noqa: E402
from benchmarks.run import machine_info  # noqa: E402
from hesse.parameters import DataJacobian  # noqa: E402

DENSE_SAMPLES = 48  # of the slice on which the dense way is timed
REPEATS = 3


class Log:
    """Progress as lines on standard error, one every `seconds`."""

    def __init__(self, seconds: float = 15.0) -> None:
        self.seconds, self._tasks, self._last = seconds, {}, time.perf_counter()

    def start(self, label: str, total: int | None) -> int:
        """A task begins to be shown."""
        self._tasks[len(self._tasks)] = [label, total, 0, time.perf_counter()]
        return len(self._tasks) - 1

    def advance(self, handle: int, steps: int) -> None:
        """So many more steps are done."""
        task = self._tasks[handle]
        task[2] += steps
        if time.perf_counter() - self._last > self.seconds:
            self._last = time.perf_counter()
            print(f"  {task[0]}: {task[2]} of {task[1]}, {self._last - task[3]:.0f} s", file=sys.stderr, flush=True)

    def finish(self, handle: int) -> None:
        """The task is over."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="resnet18")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=125, help="samples of a batch")
    parser.add_argument("--memory", default="3GiB", help="the budget, the result included")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-write", action="store_true", help="leave benchmarks/results alone")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model, data = MODELS[args.model](), images(args.samples)
    blocks = by_blocks(model, data, args)
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine_info(),
        "model": args.model,
        "parameters": sum(p.numel() for p in model.parameters()),
        "samples": args.samples,
        "batch": args.batch,
        "memory": args.memory,
        "threads": args.threads,
        **blocks,
        "dense": dense_way(model, data, args.samples),
    }
    print(render(report))
    if not args.no_write:
        path = ROOT / "benchmarks" / "results" / f"gram_{args.model}.json"
        path.write_text(json.dumps(report, indent=1) + "\n")


def by_blocks(model: nn.Module, data: tuple[Tensor, Tensor], args: argparse.Namespace) -> dict[str, Any]:
    """The Gram matrix by hesse: seconds, resident memory, captures, and how far some entries are from plain autograd's."""
    batches = list(zip(*(part.split(args.batch) for part in data), strict=True))
    before = peak_bytes()
    began, began_cpu = time.perf_counter(), time.process_time()
    J = hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), batches, memory=args.memory)
    assert isinstance(J, DataJacobian)
    plan = J.gram_plan()
    with hesse.progress(Log()):
        gram = J.gram()
    seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "resident_bytes_before": before,
        "resident_bytes": peak_bytes(),
        "record_bytes_a_sample": J.bytes_per_sample,
        "tile": plan.tile,
        "held": plan.held,
        "worst_relative_error": worst_error(model, data, gram),
    }


def dense_way(model: nn.Module, data: tuple[Tensor, Tensor], samples: int) -> dict[str, Any]:
    """What writing all rows and one matrix product would take, from a slice of the rows (no disk, no half left out)."""
    x, y = (part[:DENSE_SAMPLES] for part in data)
    J = hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), (x, y))
    rows = J.dense()
    product = rows @ rows.T
    writing = best(lambda: hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), (x, y)).dense(out=rows))
    wide = rows[:, : rows.shape[1] // 8].repeat(8, 1)  # square enough for the rate of a large product
    multiplying = best(lambda: torch.mm(wide, wide.T)) / (wide.shape[0] ** 2 * wide.shape[1])
    return {
        "bytes": samples * rows.shape[1] * rows.element_size(),
        "writing_seconds": writing / len(product) * samples,
        "product_seconds": multiplying * samples**2 * rows.shape[1],
        "multiplications_a_second": 1 / multiplying,
    }


def best(run: Callable[[], Any]) -> float:
    """The least processor time of some runs, in seconds."""
    times = []
    for _ in range(REPEATS):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return min(times)


def worst_error(model: nn.Module, data: tuple[Tensor, Tensor], gram: Tensor) -> float:
    """The largest error among some entries, over the norms of their two rows: plain autograd in float64, sample by sample."""
    count = len(gram)
    chosen = [count * k // 5 for k in range(5)] + [count - 1]
    double = copy.deepcopy(model).double()
    rows = []
    for i in chosen:
        value = nn.functional.cross_entropy(double(data[0][i : i + 1].double()), data[1][i : i + 1])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, list(double.parameters()))]))
    exact = torch.stack(rows) @ torch.stack(rows).T
    scale = exact.diagonal().sqrt().outer(exact.diagonal().sqrt())
    return float(((gram[chosen][:, chosen].double() - exact).abs() / scale).max())


def peak_bytes() -> int:
    """The most memory that was resident so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def render(report: dict[str, Any]) -> str:
    """A Markdown table."""
    dense, gib = report["dense"], 2**30
    whole = dense["writing_seconds"] + dense["product_seconds"]
    n, width = report["samples"], report["parameters"]
    lines = [
        f"{report['model']}, {n} samples x {width / 1e6:.1f} million parameters, {report['threads']} threads, load "
        f"{report['machine']['load']}, {report['date']}",
        "",
        "| way | seconds | processor time | memory |",
        "|---|---|---|---|",
        f"| `J.gram()`, memory={report['memory']!r} | {report['seconds']:.0f} | {report['cpu_seconds']:.0f} s | "
        f"{report['resident_bytes'] / gib:.2f} GiB resident in all, {report['resident_bytes_before'] / gib:.2f} before |",
        f"| dense, estimated | | {whole:.0f} s (rows {dense['writing_seconds']:.0f}, product {dense['product_seconds']:.0f}) | "
        f"{dense['bytes'] / 1e9:.0f} GB of rows |",
        "",
        f"Records: {report['record_bytes_a_sample'] / 1e3:.0f} kB a sample; tiles of {report['tile']}, {report['held']} held; "
        f"{math.ceil(n / report['tile'])} tiles a side. Largest error among 36 entries, over the norms of their rows: "
        f"{report['worst_relative_error']:.1e}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
