"""Inverts one convolution in one way, in a process of its own.

``python -m benchmarks.convolutions.worker '{"case": "posted", "way": "cgls", "threads": 2, "folder": ..., "set": "full"}'``
prints one line of JSON.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.convolutions.cases import CASES, QUICK, Case
from benchmarks.convolutions.ways import Way, way

SOLVES, SECONDS = 7, 5.0  # further solves, and when there have been enough of them
POWER_STEPS = 30


def measure(case: Case, name: str, folder: str | None = None, label: str = "") -> dict[str, Any]:
    """Seconds for what is done once, for the first solution and for further ones, errors, memory; the answer as a file."""
    warm_up(case, name)
    weight, x = case.weight(), case.pictures()
    y = case.forward(weight, x)
    before = peak_memory()
    chosen = way(name, case, weight)
    begin = time.perf_counter()
    chosen.prepare()
    found: dict[str, Any] = {"status": "ok", "prepare": time.perf_counter() - begin}
    answer, first = timed(lambda: chosen.solve(y))
    times: list[float] = []
    while len(times) < SOLVES and first + sum(times) < SECONDS:
        times.append(timed(lambda: chosen.solve(y))[1])
    found |= {"first": first, "solve": statistics.median(times or [first]), "before": before, "peak": peak_memory()}
    found |= quality(case, weight, (x, y, answer)) | chosen.about
    if case.padding_mode == "circular":
        found |= beside_forward(case, chosen, weight, y)
    found |= chosen.extras()
    if folder:
        torch.save(answer, Path(folder) / f"{label}-{name}.pt")
    return found


def warm_up(case: Case, name: str) -> None:
    """Imports, libraries' own start: by another, tiny convolution."""
    tiny = dataclasses.replace(case, channels=2, side=8, noise=0.3, batch=2, rtol=0.0)
    chosen = way(name, tiny, tiny.weight())
    chosen.prepare()
    chosen.solve(tiny.forward(tiny.weight(), tiny.pictures()))


def quality(case: Case, weight: Tensor, found: tuple[Tensor, Tensor, Tensor]) -> dict[str, Any]:
    """Relative error, relative residual, and normwise backward error, from pictures, their convolution, and the answer."""
    x, y, answer = found
    if not bool(torch.isfinite(answer).all()):
        return {"status": "failed", "reason": "the answer is not finite"}
    residual = (case.forward(weight, answer) - y).norm()
    norm = largest_singular_value(case, weight)
    return {
        "error": float((answer - x).norm() / x.norm()),
        "residual": float(residual / y.norm()),
        "backward": float(residual / (norm * answer.norm() + y.norm())),
    }


def largest_singular_value(case: Case, weight: Tensor) -> float:
    """By the power method, with torch alone."""
    v = dataclasses.replace(case, batch=1).pictures()
    norm = torch.zeros(())
    for _ in range(POWER_STEPS):
        v = v / v.norm()
        image = case.forward(weight, v)
        norm = image.norm()
        with torch.enable_grad():
            variable = v.clone().requires_grad_()
            (v,) = torch.autograd.grad(case.forward(weight, variable), variable, image)
    return float(norm)


def beside_forward(case: Case, chosen: Way, weight: Tensor, y: Tensor) -> dict[str, Any]:
    """The inverse and the convolution itself in turn; their median ratio, and the convolution's seconds."""
    pairs = []
    for _ in range(SOLVES + 2):
        forward = timed(lambda: case.forward(weight, y))[1]
        pairs.append((timed(lambda: chosen.solve(y))[1], forward))
    return {"ratio": statistics.median(a / b for a, b in pairs[2:]), "forward": statistics.median(b for _, b in pairs[2:])}


def timed(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """The result, and the seconds that it took."""
    begin = time.perf_counter()
    result = run()
    return result, time.perf_counter() - begin


def peak_memory() -> int:
    """Bytes that the process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(job: dict[str, Any]) -> None:
    """Measure and print, whatever happens."""
    torch.set_num_threads(job["threads"])
    try:
        with torch.no_grad():
            case = (QUICK if job["set"] == "quick" else CASES)[job["case"]]
            result = measure(case, job["way"], job["folder"], job["case"])
    except Exception as error:
        result = {"status": "failed", "reason": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
