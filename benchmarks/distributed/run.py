"""Measure products over 1 to 4 processes, fit latency and bandwidth, and put the model of time beside the measurement.

``python benchmarks/distributed/run.py`` prints Markdown tables, puts them into ``docs/explanation/cost_of_distribution.md``,
and writes ``benchmarks/results/distributed.json`` and ``docs/images/distribution.png``; with ``--draw`` from the file alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script: make `benchmarks` a package

from benchmarks.run import machine_info  # noqa: E402
from benchmarks.tables import write_between_markers  # noqa: E402
from hesse.distributed import expected_seconds  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "distributed.json"
FIGURE = ROOT / "docs" / "images" / "distribution.png"
PAGE = ROOT / "docs" / "explanation" / "cost_of_distribution.md"
CLUSTER = {"latency": 10e-6, "bandwidth": 25e9}  # assumed: a step of 10 microseconds, 200 Gbit/s a GPU
CASES = ((1.0, 10**7), (1.0, 10**9), (60.0, 10**9))  # seconds of work on one GPU, parameters


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--draw", action="store_true")
    args = parser.parse_args(arguments)
    if not args.draw:
        found = [measure(ranks, args.repeats) for ranks in args.ranks]
        fits = {str(one["ranks"]): fit(one) for one in found if one["ranks"] > 1}
        report = {
            "date": datetime.datetime.now().astimezone().date().isoformat(), "machine": machine_info(),
            "load": os.getloadavg()[1], "repeats": args.repeats, "runs": found, "fits": fits,
        }  # fmt: skip
        RESULT.write_text(json.dumps(report, indent=1) + "\n")
    report = json.loads(RESULT.read_text())
    parts = (all_reduces(report), exchanges(report), products(report), expectations())
    text = "\n\n".join([_about(report), *("\n".join(rows) for rows in parts)])
    print(text)
    write_between_markers(PAGE, text)
    draw(report)


def measure(ranks: int, repeats: int) -> dict[str, Any]:
    """The findings of so many processes."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks),
        str(ROOT / "benchmarks" / "distributed" / "worker.py"),
    ]  # fmt: skip
    environment = {**os.environ, "REPEATS": str(repeats), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=900)
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def fit(run: dict[str, Any]) -> dict[str, float]:
    """Latency of a step and bandwidth, from the smallest and the largest all-reduce."""
    ranks, times = run["ranks"], {int(size): seconds for size, seconds in run["all_reduce"].items()}
    small, large = min(times), max(times)
    rate = (times[large] - times[small]) / (large - small)  # seconds a byte
    steps, share = 2 * (ranks - 1), 2 * (ranks - 1) / ranks
    return {"latency": max(times[small] - rate * small, 0.0) / steps, "bandwidth": share / rate}


def modelled(report: dict[str, Any], run: dict[str, Any], product: dict[str, Any]) -> float:
    """Seconds of a product, by the model: the work as measured alone, and exchanges by the fit of so many processes."""
    if run["ranks"] == 1:
        return product["work"]
    facts = report["fits"][str(run["ranks"])]
    return expected_seconds(product["work"] * run["ranks"], product["numbers"], run["ranks"], **facts, before=2).total


def _about(report: dict[str, Any]) -> str:
    return (
        f"Measured on {report['date']}: medians of {report['repeats']}, other programs on the machine "
        f"(load {report['load']:.1f} over five minutes)."
    )


def all_reduces(report: dict[str, Any]) -> list[str]:
    """A table of fits."""
    rows = ["| processes | a step, µs | bandwidth, MB/s |", "|---|---|---|"]
    return rows + [
        f"| {ranks} | {1e6 * one['latency']:.0f} | {one['bandwidth'] / 1e6:.0f} |" for ranks, one in report["fits"].items()
    ]


def exchanges(report: dict[str, Any]) -> list[str]:
    """A table of exchanges with two all-reduces, and with one."""
    rows = ["| numbers | processes | header, then payload, µs | both in one, µs |", "|---|---|---|---|"]
    return rows + [
        f"| {one['numbers']:,} | {run['ranks']} | {1e6 * one['two']:,.0f} | {1e6 * one['one']:,.0f} |"
        for index in range(3) for run in report["runs"] for one in run["exchanges"][index : index + 1]
    ]  # fmt: skip


def products(report: dict[str, Any]) -> list[str]:
    """A table of products."""
    rows = [
        "| parameters | processes | own work, ms | product, ms | model, ms | bytes sent, each | seen by the device |",
        "|---|---|---|---|---|---|---|",
    ]
    for index in range(len(report["runs"][0]["products"])):
        for run in report["runs"]:
            one = run["products"][index]
            rows.append(
                f"| {one['numbers']:,} | {run['ranks']} | {1e3 * one['work']:.1f} | {1e3 * one['seconds']:.1f} "
                f"| {1e3 * modelled(report, run, one):.1f} | {one['bytes_sent']:,.0f} | {one['wire_bytes']:,.0f} |"
            )
    return rows


def expectations() -> list[str]:
    """What the model says of GPUs."""
    rows = [
        "| work on one GPU, s | parameters | GPUs | time, s | of it work | sent by each, MB |",
        "|---|---|---|---|---|---|",
    ]
    for work, numbers in CASES:
        for ranks in (8, 64, 1024):
            one = expected_seconds(work, numbers, ranks, **CLUSTER, before=2)
            rows.append(
                f"| {work:g} | {numbers:,} | {ranks:,} | {one.total:.3g} | {100 * one.efficiency:.0f} % "
                f"| {one.bytes_sent / 1e6:,.0f} |"
            )
    return rows


def draw(report: dict[str, Any]) -> None:
    """Measured and modelled products on the left, the model of a cluster on the right."""
    from examples.drawing import BLUE, GREEN, ORANGE, panels, style

    figure, (left, right) = panels()
    style(left, "measured (points) and modelled (lines)", "processes (gloo, two cores)", "milliseconds a product")
    ranks = [run["ranks"] for run in report["runs"]]
    for index, color in enumerate((BLUE, ORANGE)):
        chosen = [run["products"][index] for run in report["runs"]]
        left.plot(ranks, [1e3 * one["seconds"] for one in chosen], "o", color=color)
        model = [1e3 * modelled(report, run, one) for run, one in zip(report["runs"], chosen, strict=True)]
        left.plot(ranks, model, "-", color=color)
        left.text(1, 1.6e3 * chosen[0]["seconds"], f"{chosen[0]['numbers']:,} parameters", color=color)
    left.set(yscale="log", xticks=ranks)
    left.margins(y=0.16)
    style(right, "expected of GPUs, by the model", "GPUs", "seconds a product")
    counts = [2**k for k in range(11)]
    places = (1, 0.014), (11, 0.19), (7, 12)
    for (work, numbers), color, place in zip(CASES, (BLUE, ORANGE, GREEN), places, strict=True):
        times = [expected_seconds(work, numbers, p, **CLUSTER, before=2).total for p in counts]
        right.plot(counts, times, color=color)
        right.text(*place, f"{work:g} s of work, {numbers:.0e} parameters".replace("e+0", "e"), color=color)
    right.set(xscale="log", yscale="log", xticks=(1, 8, 64, 1024), xticklabels=("1", "8", "64", "1,024"))
    right.minorticks_off()
    figure.savefig(FIGURE, dpi=150)


if __name__ == "__main__":
    main()
