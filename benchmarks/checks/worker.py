"""Runs one checker on cases, each in a forked process with a time limit; speaks JSON lines on standard output.

A checker that refuses a program with an error complains of it: somebody who calls it sees no pass.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
import warnings
from typing import Any

import torch

from benchmarks.checks.sets import Case
from benchmarks.checks.ways import CannotRun, complaint, warm_up


def main() -> None:
    """One line for each case that has ended; the job is the first argument, as JSON."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    warm_up(job["library"])
    for text in job["quantities"]:
        found = outcome(job["library"], Case.parse(text), job["limit"])
        print(json.dumps({"event": "result", "quantity": text, **found}), flush=True)


def outcome(way: str, case: Case, limit: float) -> dict[str, Any]:
    """What became of the check: status "passed", "complaint", "crash", "timeout" or "cannot run", reason, seconds."""
    begin = time.perf_counter()
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        os.close(reader)
        _child(way, case, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        ready, _, _ = select.select([stream], [], [], limit)
        if not ready:
            os.kill(process, signal.SIGKILL)
        told = stream.read() if ready else b""
    _, status = os.waitpid(process, 0)
    seconds = time.perf_counter() - begin
    if not ready:
        return {"status": "timeout", "reason": f"nothing within {limit:.0f} s", "seconds": seconds}
    if not told:
        return {"status": "crash", "reason": f"ended with {os.waitstatus_to_exitcode(status)}", "seconds": seconds}
    return {**json.loads(told), "seconds": seconds}


def _child(way: str, case: Case, writer: int) -> None:
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        os.write(writer, json.dumps(_judged(way, case)).encode())
    finally:
        os._exit(0)


def _judged(way: str, case: Case) -> dict[str, str]:
    program = case.program()
    try:
        said = complaint(way, program)
    except CannotRun as error:
        return {"status": "cannot run", "reason": str(error)}
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0]} ({os.path.basename(where.filename)}:{where.lineno})"
        return {"status": "complaint", "reason": reason[:400]}
    return {"status": "passed", "reason": ""} if said is None else {"status": "complaint", "reason": said[:400]}


if __name__ == "__main__":
    main()
