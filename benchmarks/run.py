"""Time hesse and its peers in units of one gradient, each in a process (peers: an environment) of its own.

``python benchmarks/run.py`` prints a Markdown table and writes ``benchmarks/results/latest.json``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a script: make `benchmarks` a package

from benchmarks.environments import InstallError, default_torch, python_of  # noqa: E402
from benchmarks.import_time import import_time  # noqa: E402
from benchmarks.measure import FULL, QUICK  # noqa: E402
from benchmarks.quantities import MODEL_TITLES, SLOW, TITLES, quantities_of  # noqa: E402
from benchmarks.tables import LIBRARIES, render, write_between_markers  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
REPORTED = ("version", "torch", "threads", "reason")  # of what is known about a library
SILENCE = 900.0  # seconds without a word after which a worker is given up


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print, write."""
    args = _parse(arguments)
    report = measure(args)
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1)
    (RESULTS / f"{report['date'].replace(':', '').replace(' ', '-')}.json").write_text(text)
    (RESULTS / "latest.json").write_text(text)
    table = render(report)
    print(table)
    if args.write_docs:
        write_between_markers(PAGE, table)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=names_among(MODEL_TITLES), help=f"some of {', '.join(MODEL_TITLES)}")
    parser.add_argument("--quantities", type=names_among(TITLES), help=f"some of {', '.join(TITLES)}")
    parser.add_argument("--libraries", type=names_among(LIBRARIES), help=f"some of {', '.join(LIBRARIES)}")
    parser.add_argument("--quick", action="store_true", help="few repeats; no slow models and no blocks unless named")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (2)")
    parser.add_argument("--torch", default=default_torch(), help="what pip installs as PyTorch for the peers")
    parser.add_argument("--write-docs", action="store_true", help=f"put the table into {PAGE.relative_to(ROOT)}")
    args = parser.parse_args(arguments)
    args.models = args.models or [m for m in MODEL_TITLES if not (args.quick and m in SLOW)]
    args.quantities = args.quantities or [q for q in TITLES if not (args.quick and (q in SLOW or q.endswith("_block")))]
    args.libraries = args.libraries or list(LIBRARIES)
    return args


def names_among(known: Any) -> Any:
    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            found = ", ".join(unknown) or "nothing"
            raise argparse.ArgumentTypeError(f"{found} is not among {', '.join(known)}")
        return [name for name in known if name in names]

    return parse


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The report: what ran where, and one result for each library, model and quantity."""
    machine = machine_info()
    libraries: dict[str, dict[str, Any]] = {}
    for name in args.libraries:
        try:
            note(f"environment of {LIBRARIES[name]}")
            libraries[name] = {"python": str(python_of(name, args.torch))}
        except InstallError as error:
            libraries[name] = {"reason": f"cannot be installed: {error}"}
    results: list[dict[str, Any]] = []
    models = [m for m in args.models if any(q in args.quantities for q in quantities_of(m))]
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            job = {
                "model": model,
                "quantities": [q for q in quantities_of(model) if q in args.quantities],
                "threads": args.threads,
                "reference": str(Path(folder) / "reference.pt"),
                "budget": asdict(QUICK if args.quick else FULL),
            }
            note(f"{model}: reference")
            _start_checked(Path(sys.executable), job | {"library": None})
            for name, about in libraries.items():
                for result in measure_library(name, about, job):
                    results.append({"library": name, "model": model, **result})
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "mode": "quick" if args.quick else "full",
        "threads": args.threads,
        "machine": machine,
        "libraries": {name: {k: v for k, v in about.items() if k in REPORTED} for name, about in libraries.items()},
        "models": models,
        "results": results,
        "import_time": import_time(3 if args.quick else 7) if "hesse" in args.libraries else None,
    }


def measure_library(name: str, about: dict[str, Any], job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One result a quantity. A worker that dies or falls silent costs one quantity, and is started again.

    A library that offers none of the quantities, as an earlier model has shown, is not started. The module that is run is
    ``job["worker"]``, if it is there.
    """
    absent = about.setdefault("absent", [])
    left = [quantity for quantity in job["quantities"] if quantity not in absent]
    yield from ({"quantity": quantity, "status": "absent"} for quantity in job["quantities"] if quantity in absent)
    while left and "reason" not in about:
        current = None
        for message in _messages(Path(about["python"]), job | {"library": name, "quantities": left}):
            event = message.pop("event")
            if event == "library":
                about |= message
            elif event == "start":
                current = message["quantity"]
                note(f"{job['model']}: {LIBRARIES.get(name, name)}: {TITLES.get(current, current)}")
            elif event == "result":
                left.remove(message["quantity"])
                current = None
                if message["status"] == "absent":
                    absent.append(message["quantity"])
                yield message
            elif event == "end" and left and "reason" not in about:
                lost = current or left[0]
                left.remove(lost)
                yield {"quantity": lost, "status": "failed", "reason": message["reason"]}
    for quantity in left:
        yield {"quantity": quantity, "status": "failed", "reason": about["reason"]}


def _messages(python: Path, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a worker says, and last how it ended."""
    with tempfile.TemporaryFile("w+") as errors:
        process = _start(python, job, stdout=subprocess.PIPE, stderr=errors)
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(process, lines), daemon=True).start()
        try:
            while (line := lines.get(timeout=SILENCE)) is not None:
                yield json.loads(line)
            code = process.wait()
            errors.seek(0)
            last = next((text.strip() for text in reversed(errors.read().splitlines()) if text.strip()), "no message")
            yield {"event": "end", "reason": f"its process ended with {code}: {last[:200]}"}
        except queue.Empty:
            yield {"event": "end", "reason": f"nothing within {SILENCE:.0f} s"}
        finally:
            process.kill()
            process.wait()


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    for line in process.stdout or ():
        if line.startswith("{"):
            lines.put(line)
    lines.put(None)


def _start(python: Path, job: dict[str, Any], **streams: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": str(job["threads"]), "PYTHONWARNINGS": "ignore"}
    command = [str(python), "-m", job.get("worker", "benchmarks.worker"), json.dumps(job)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **streams)


def _start_checked(python: Path, job: dict[str, Any]) -> None:
    code = _start(python, job).wait()
    if code:
        sys.exit(f"the reference of {job['model']} could not be computed (exit code {code})")


def machine_info() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    processor = models[0].split(":")[1].strip() if models else platform.processor() or platform.machine()
    return {
        "processor": f"{processor} (CPU)",
        "cores": os.cpu_count(),
        "system": platform.system(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }


def note(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
