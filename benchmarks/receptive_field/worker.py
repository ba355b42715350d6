"""One way in a process of its own: a request a line on its input, an answer a line on its output."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measure import peak_growth
from benchmarks.receptive_field.cases import CASES, make


def main() -> None:
    """Answer until the input ends."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    made = {name: make(case, job["way"]) for name, case in CASES.items()}
    print(json.dumps({"status": "ready"}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        ready = made[request["case"]]
        answer = {"status": "absent"} if ready is None else measure(*ready, request)
        print(json.dumps(answer), flush=True)


def measure(f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, weight: torch.Tensor, request: Any) -> dict[str, Any]:
    """The median time and the peak memory of a forward pass without a graph, or of both passes."""

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return f(x)

    variable = x.clone().requires_grad_()

    def both() -> Any:
        out = f(variable)
        return torch.autograd.grad(out, [variable, weight], torch.ones_like(out))

    run = forward if request["what"] == "forward" else both
    run()
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter  # the former: what others take is left out
    start, times = clock(), []
    while len(times) < 3 or (clock() - start < request["seconds"] and len(times) < 200):
        before = clock()
        run()
        times.append(clock() - before)
    checksum = float(forward().double().mean())
    return {"status": "ok", "seconds": statistics.median(times), "peak": peak_growth(run), "checksum": checksum}


if __name__ == "__main__":
    main()
