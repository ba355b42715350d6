"""Asks one way about the programs of one table, each in a forked process, or times it.

``python -m benchmarks.nonfinite.worker '{"model": ..., "library": ..., "quantities": [...], ...}'`` prints lines of JSON as
``benchmarks.worker`` does; ``model`` is the table (faults, benign, costs), ``library`` the way, ``quantities`` are the rows.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import sys
import time
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.measure import Budget, timing
from benchmarks.nonfinite.fault import SEED, Fault
from benchmarks.nonfinite.isolated import isolated
from benchmarks.nonfinite.sets import BENIGN, FAULTS
from benchmarks.nonfinite.steps import STEPS
from benchmarks.nonfinite.ways import WATCHED, WAYS, Answer

PATIENCE = 60.0  # seconds for a program that takes milliseconds
MANY = 20


def main(job: dict[str, Any]) -> None:
    """Do the job described in the module's docstring."""
    torch.set_num_threads(job["threads"])
    if job["library"] != "anomaly":
        importlib.import_module("hesse.debug")
    if len(job["quantities"]) > MANY:
        importlib.import_module("torch._dynamo")  # what compiles would import it in its own process, each time
    _say(event="library", torch=torch.__version__, threads=torch.get_num_threads())
    for name in job["quantities"]:
        _say(event="start", quantity=name)
        _say(event="result", quantity=name, **_result(name, job))


def _result(name: str, job: dict[str, Any]) -> dict[str, Any]:
    if job["model"] == "costs":
        return _cost(name, job)
    return isolated(lambda: ask(name, job["library"]), PATIENCE)


def ask(name: str, way: str) -> dict[str, Any]:
    """The outcome of one program: right, wrong or silent for a fault; silent or alarm for a harmless one."""
    program = FAULTS.get(name) or BENIGN[name]
    step = program.step()
    start = time.perf_counter()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        answer = WAYS[way](step)
    seconds = time.perf_counter() - start
    judged = judge(program, answer) if isinstance(program, Fault) else {"status": "alarm" if answer.found else "silent"}
    return {**judged, "seconds": seconds, **asdict(answer)}


def judge(fault: Fault, answer: Answer) -> dict[str, Any]:
    """Whether a marked line is among the places named; phase and operation where the line is right."""
    if not answer.found:
        return {"status": "silent"}
    named = [line for file, line in answer.places if file and os.path.realpath(file) == os.path.realpath(fault.file)]
    if not set(named) & set(fault.lines):
        return {"status": "wrong", "expected": list(fault.lines)}
    return {
        "status": "right",
        "best": fault.lines[0] in named,
        "phase_right": answer.phase in fault.phases,
        "op_right": re.search(fault.op, answer.op, re.IGNORECASE) is not None,
    }


def _cost(name: str, job: dict[str, Any]) -> dict[str, Any]:
    """The time of a step in a way, in units of the plain step, each timed between two plain ones."""
    torch.manual_seed(SEED)
    step = STEPS[name]()
    if WAYS[job["library"]](step).found:
        return {"status": "failed", "reason": "an alarm on a step that is well"}
    watched = WATCHED[job["library"]](step)
    for _ in range(3):
        step()
        watched()
    return {"status": "ok", **asdict(timing(watched, step, Budget(**job["budget"])))}


def _say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
