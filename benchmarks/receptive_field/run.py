"""Time receptive-field convolutions beside `conv2d` and beside code by hand, each way in a process of its own.

``python -m benchmarks.receptive_field.run`` prints a Markdown table; ``--write-docs`` puts it into the docs.
"""

from __future__ import annotations

import argparse
import datetime
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script: make `benchmarks` a package

from benchmarks.receptive_field.cases import CASES, WAYS  # noqa: E402
from benchmarks.run import machine_info, names_among  # noqa: E402
from benchmarks.sparse.process import Process  # noqa: E402

PAGE = ROOT / "docs" / "benchmarks_convolutions.md"
BEGIN, END = "<!-- receptive field -->", "<!-- end of receptive field -->"
PASSES = {"forward": "forward", "both": "forward and backward"}
REFERENCE = {"multiply": "conv2d", "tangent": "hand", "distance": "hand"}
Answers = dict[tuple[str, str, str], dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=names_among(CASES), default=list(CASES), help=f"some of {', '.join(CASES)}")
    parser.add_argument("--ways", type=names_among(WAYS), default=list(WAYS), help=f"some of {', '.join(WAYS)}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="in each of which all ways take a turn")
    parser.add_argument("--seconds", type=float, default=0.3, help="of a turn")
    parser.add_argument("--write-docs", action="store_true", help=f"put the table into {PAGE.relative_to(ROOT)}")
    args = parser.parse_args(arguments)
    text = render(measure(args), args)
    print(text)
    if args.write_docs:
        page = PAGE.read_text()
        before, rest = page.split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")


def measure(args: argparse.Namespace) -> Answers:
    """For each way, case and pass: medians over the rounds."""
    workers = {way: Process(sys.executable, {"way": way, "threads": args.threads}, "benchmarks.receptive_field.worker")
               for way in args.ways}  # fmt: skip
    found: Answers = {}
    for case in args.cases:
        for what in PASSES:
            request = {"case": case, "what": what, "seconds": args.seconds, "patience": 240.0}
            turns = [{way: worker.ask(request) for way, worker in workers.items()} for _ in range(args.rounds)]
            for way in args.ways:
                found[way, case, what] = _median([turn[way] for turn in turns])
            _compare(case, [found[way, case, what] for way in args.ways])
    for worker in workers.values():
        worker.close()
    return found


def _median(answers: list[dict[str, Any]]) -> dict[str, Any]:
    good = [a for a in answers if a["status"] == "ok"]
    if len(good) < len(answers):
        return next(a for a in answers if a["status"] != "ok")
    peaks = [a["peak"] for a in good if a["peak"] is not None]
    seconds = statistics.median(a["seconds"] for a in good)
    return good[0] | {"seconds": seconds, "peak": statistics.median(peaks) if peaks else None}


def _compare(case: str, answers: list[dict[str, Any]]) -> None:
    """Refuse to print times of ways that give different numbers."""
    sums = [a["checksum"] for a in answers if a["status"] == "ok"]
    if not all(math.isclose(s, sums[0], rel_tol=1e-3) for s in sums):
        raise SystemExit(f"{case}: the ways give different numbers: {sums}")


def render(found: Answers, args: argparse.Namespace) -> str:
    """The table: times, and in units of the reference of each row."""
    machine = machine_info()
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    clock = "processor times" if args.threads == 1 else "times"
    lines = [
        f"{machine['processor']}, {args.threads} thread(s), load {machine['load']}, {now}. Medians of {clock}; in brackets,",
        "how many times that of the reference (`conv2d` where there is one, else by hand), and the growth of resident memory.",
        "",
        "| | " + " | ".join(WAYS[way] for way in args.ways) + " |",
        "|---|" + "---|" * len(args.ways),
    ]
    for case in args.cases:
        for what, title in PASSES.items():
            unit = found.get((REFERENCE[CASES[case].what], case, what), {"status": "absent"})
            cells = [_cell(found[way, case, what], unit) for way in args.ways]
            lines.append(f"| {CASES[case].title}: {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(answer: dict[str, Any], unit: dict[str, Any]) -> str:
    if answer["status"] != "ok":
        return "" if answer["status"] == "absent" else answer.get("reason", answer["status"])
    ratio = f", {answer['seconds'] / unit['seconds']:.1f}x" if unit["status"] == "ok" else ""
    peak = "" if answer["peak"] is None else f", {answer['peak'] / 2**20:.1f} MiB"
    return f"{answer['seconds'] * 1e3:.2f} ms ({ratio.removeprefix(', ')}{peak})"


if __name__ == "__main__":
    main()
