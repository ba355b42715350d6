"""Measures one library on one model, in the interpreter and the process that it is started in.

``python -m benchmarks.worker '{"library": ..., "model": ..., "quantities": [...], ...}'`` prints a line of
JSON when it starts a quantity and one when it is done, so that what was measured outlives a crash.
``"library": null`` writes the references instead.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch

from benchmarks.agreement import DRAWS, disagreement
from benchmarks.measure import FEWEST, Budget, peak_growth, timing
from benchmarks.models import Problem, SmallFunctions, make_functions, make_problem
from benchmarks.quantities import FEW_RUNS, FIRST, FUNCTIONS, MAX_NORM, SAMPLED, as_blocks
from benchmarks.reference import references as make_references


def main(job: dict[str, Any]) -> None:
    """Do the job described in the module's docstring."""
    torch.set_num_threads(job["threads"])
    problem = make_functions() if job["model"] == FUNCTIONS else make_problem(job["model"])
    if job["library"] is None:
        torch.save(make_references(problem, job["quantities"]), job["reference"])
        return
    try:
        library = importlib.import_module(f"benchmarks.libraries.{job['library']}")
    except Exception as error:  # whatever goes wrong while a peer is imported belongs into the table
        _say(event="library", reason=f"cannot be imported: {_first_line(error)}")
        return
    gc.collect()
    gc.freeze()  # what was imported is not looked through again: faster, and steadier while something is timed
    version = importlib.metadata.version(library.DISTRIBUTION)
    _say(event="library", version=version, torch=torch.__version__, threads=torch.get_num_threads())
    for quantity in job["quantities"]:
        if quantity not in library.TASKS:
            _say(event="result", quantity=quantity, status="absent")
            continue
        _say(event="start", quantity=quantity)
        references = torch.load(job["reference"], mmap=True)
        asked = _problem_of(quantity, problem, references)
        try:
            found = _measure(library.TASKS[quantity], quantity, asked, references[quantity], Budget(**job["budget"]))
        except Exception as error:  # a peer's refusal, in whatever type it comes
            found = {"status": "refused", "reason": _first_line(error)}
        _say(event="result", quantity=quantity, **found)


def _problem_of(quantity: str, problem: Problem | SmallFunctions, references: dict[str, Any]) -> Problem | SmallFunctions:
    """The problem as `quantity` asks for it: on fewer samples, or with the norm to clip to."""
    if isinstance(problem, SmallFunctions):
        return problem
    if quantity == "clipped_sum":
        problem = replace(problem, max_norm=float(references[MAX_NORM][""]))
    return problem.head(FIRST.get(quantity, len(problem.inputs)))


def _measure(
    prepare: Callable[[Any], Any],
    quantity: str,
    problem: Problem | SmallFunctions,
    reference: dict[str, torch.Tensor],
    budget: Budget,
) -> dict[str, Any]:
    torch.manual_seed(20)  # for libraries whose randomness is the global one
    run, read = prepare(problem)
    shapes = {n: tuple(p.shape) for n, p in problem.params.items()} if isinstance(problem, Problem) else {}
    found = _mean(lambda: as_blocks(quantity, read(run()), shapes), DRAWS if quantity in SAMPLED else 1)
    error, tolerance = disagreement(quantity, found, reference)
    del found, reference
    if not error < tolerance:
        return {"status": "wrong", "error": error}
    gradient = _unit(problem, quantity)
    gradient()
    timed = timing(run, gradient, replace(budget, least=FEWEST) if quantity in FEW_RUNS else budget)
    memory, unit_memory = peak_growth(run), peak_growth(gradient)
    return {"status": "ok", "error": error, **asdict(timed), "memory": memory, "gradient_memory": unit_memory}


def _mean(draw: Callable[[], dict[str, torch.Tensor]], count: int) -> dict[str, torch.Tensor]:
    """The mean of `count` draws, block by block; nothing if they differ in form."""
    total = draw()
    for _ in range(count - 1):
        new = draw()
        if {name: block.shape for name, block in new.items()} != {name: block.shape for name, block in total.items()}:
            return {}
        total = {name: block + new[name] for name, block in total.items()}
    return {name: block / count for name, block in total.items()} if count > 1 else total


def _unit(problem: Problem | SmallFunctions, quantity: str) -> Callable[[], Any]:
    if isinstance(problem, Problem):
        return problem.gradient
    function = problem.f if quantity == "jacobian" else problem.g
    return lambda: problem.gradient_of(function)


def _first_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200]


def _say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
