"""Measures one way on the rows of one table, in a process of its own.

``python -m benchmarks.functional.worker '{"model": ..., "library": ..., "quantities": [...], ...}'`` prints lines of JSON as
``benchmarks.worker`` does; ``model`` is the table, ``library`` the column, ``quantities`` are the rows.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Budget, timing

TOLERANCE_OF_STEPS = 5e-3  # of how far parameters moved, which rounding of the much larger parameters blurs
TOLERANCE = 2e-4  # of single precision against double, relative to the largest element of a tensor
BLOCK = 3e-3  # seconds of calls that are timed as one
CHECKED_STEPS = 6


def main(job: dict[str, Any]) -> None:
    """Do the job described in the module's docstring."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = job["cache"]
    torch.set_num_threads(job["threads"])
    _start_compilers(job["library"])
    gc.collect()
    gc.freeze()
    _say(event="library", torch=torch.__version__, threads=torch.get_num_threads())
    measure = {"micro": _micro, "steps": _steps, "suite": _suite}[job["model"]]
    for row in job["quantities"]:
        _say(event="start", quantity=row)
        try:
            found = measure(row, job["library"], job)
        except Exception as error:
            found = {"status": "failed", "reason": _first_line(error)}
        _say(event="result", quantity=row, **found)


def _start_compilers(way: str) -> None:
    """Import what a way needs, and compile something, so that no row pays for what is paid once in a process."""
    import torch._dynamo
    import torch._inductor.compile_fx

    if any(part in way for part in ("compile", "native", "unguarded")):
        torch._inductor.config.fallback_random = True  # so that dropout can be compared
        torch.compile(lambda t: t.sin() @ t.cos().exp())(torch.randn(64, 64))
        torch._dynamo.reset()


def _micro(row: str, way: str, job: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.functional.micro import MICRO
    from benchmarks.functional.micro_ways import WAYS

    micro = MICRO[row]
    draws = [micro.data(torch.Generator().manual_seed(seed)) for seed in (0, 1, 2)]
    references = [micro.by_hand(*(t.double() for t in draw)) for draw in draws]
    failure: dict[str, Any] = {}
    for name, make in WAYS[way](micro):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        try:
            start = time.perf_counter()
            run, notices = _noting(lambda make=make: _made_and_called(make(draws[0]), draws[0]))
            cold = time.perf_counter() - start
            error = max(disagreement(run(*d), r) for d, r in zip(draws, references, strict=True))
        except Exception as problem:
            failure = failure or {"status": "failed", "reason": _named(name, _first_line(problem))}
            continue
        if not error < TOLERANCE:
            failure = failure or {"status": "wrong", "error": error, "reason": _named(name, f"relative error {error:.1g}")}
            continue
        notes = [f"of the {name} program"] if name else []
        notes += notices + _breaks(way)
        timed = _timed(lambda run=run: run(*draws[0]), lambda: micro.by_hand(*draws[0]), job)
        return {"status": "ok", "error": error, "cold": cold, "notes": notes, **timed}
    return failure


def _made_and_called(run: Callable[..., Any], tensors: tuple[Tensor, ...]) -> Callable[..., Any]:
    run(*tensors)
    return run


def _steps(row: str, way: str, job: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.functional.originals import double, make_original
    from benchmarks.functional.step_ways import WAYS

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    original = make_original(row)
    batches = original.batches
    start = time.perf_counter()
    ((step, state), first), notices = _noting(lambda: _first_step(WAYS[way](original), batches[0]))
    cold = time.perf_counter() - start
    wanted, wanted_state = WAYS["hand"](double(make_original(row)))
    references = [wanted(x.double(), y) for x, y in _cycled(batches, CHECKED_STEPS)]
    values = [first, *(step(x, y) for x, y in itertools.islice(_cycled(batches, CHECKED_STEPS), 1, None))]
    found = {name: p.detach().clone() for name, p in state().items()}
    last = {name: p.detach() for name, p in wanted_state().items()}
    error, moved = disagreement(values, references), disagreement(_changes(found, row), _changes(last, row))
    if not (error < TOLERANCE and moved < TOLERANCE_OF_STEPS):
        error = max(error, moved)
        return {"status": "wrong", "error": error, "reason": f"relative error {error:.1g}"}
    unit, _ = WAYS["hand"](make_original(row))
    endless, unit_endless = itertools.cycle(batches), itertools.cycle(batches)
    timed = _timed(lambda: step(*next(endless)), lambda: unit(*next(unit_endless)), job)
    return {"status": "ok", "error": error, "cold": cold, "notes": notices + _breaks(way), **timed}


def _first_step(made: Any, batch: tuple[Tensor, Tensor]) -> tuple[Any, Tensor]:
    return made, made[0](*batch)


def _cycled(batches: Any, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    return itertools.islice(itertools.cycle(batches), count)


def _changes(params: dict[str, Tensor], row: str) -> list[Tensor]:
    """How far the parameters moved, in the order of their names: small beside the parameters, so compared on its own."""
    from benchmarks.functional.originals import make_original

    start = make_original(row).params
    return [params[name].double() - start[name].double() for name in sorted(start)]


def _suite(row: str, way: str, job: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.functional.suite import outcome

    return outcome(row, way)


def disagreement(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest difference relative to the largest element of its tensor; infinite where shapes differ or a value is NaN."""
    if [f.shape for f in found] != [w.shape for w in wanted]:
        return float("inf")
    worst = 0.0
    for f, w in zip(found, wanted, strict=True):
        gap = float((f.detach().double() - w.detach()).abs().max())
        scale = float(w.detach().abs().max())
        error = gap / scale if scale else gap
        worst = max(worst, error if error == error else float("inf"))
    return worst


def _timed(run: Callable[[], Any], unit: Callable[[], Any], job: dict[str, Any]) -> dict[str, Any]:
    """Seconds a call, and its ratio to a call of `unit`, in blocks of calls that take equally long."""
    count, unit_count = _calls(run), _calls(unit)
    found = asdict(timing(_block(run, count), _block(unit, unit_count), Budget(**job["budget"])))
    scale = unit_count / count
    return {
        "seconds": found["seconds"] / count,
        "unit_seconds": found["gradient_seconds"] / unit_count,
        "ratio": found["ratio"] * scale,
        "ratio_quartiles": [scale * quartile for quartile in found["ratio_quartiles"]],
        "rounds": found["rounds"],
    }


def _calls(run: Callable[[], Any]) -> int:
    """How many calls take `BLOCK` seconds, by the fastest of a few after two that are not timed."""
    times = []
    for _ in range(7):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return max(1, round(BLOCK / min(times[2:])))


def _block(run: Callable[[], Any], count: int) -> Callable[[], None]:
    def block() -> None:
        for _ in range(count):
            run()

    return block


def _noting(run: Callable[[], Any]) -> tuple[Any, list[str]]:
    """The result, and the notices of hesse that something runs directly."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = run()
    return result, [" ".join(str(w.message).split())[:200] for w in caught if "CompileNotice" in w.category.__name__]


def _breaks(way: str) -> list[str]:
    if not way.startswith("compile"):
        return []
    counters = torch._dynamo.utils.counters
    broken = [" ".join(str(reason).split())[:120] for reason in list(counters["graph_break"])[:1]]
    return [f"runs in pieces: {reason}" for reason in broken]


def _named(name: str, reason: str) -> str:
    return f"{name}: {reason}" if name else reason


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
