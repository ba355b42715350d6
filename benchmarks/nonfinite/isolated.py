"""Runs a function in a forked process, so that neither a crash nor what it leaves behind reaches the next one."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any


def isolated(run: Callable[[], dict[str, Any]], seconds: float) -> dict[str, Any]:
    """What `run` returns, or ``{"status": "failed", "reason": ...}`` if it raises, dies or takes longer than `seconds`."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os.close(reading)
        _child(run, writing)
    os.close(writing)
    try:
        text = _read(reading, time.monotonic() + seconds)
        if text is None:
            os.kill(child, signal.SIGKILL)
    finally:
        os.close(reading)
        _, status = os.waitpid(child, 0)
    if text is None:
        return {"status": "failed", "reason": f"not done within {seconds:.0f} s"}
    if not text:
        return {"status": "failed", "reason": f"its process ended with {os.waitstatus_to_exitcode(status)}"}
    return json.loads(text)


def _child(run: Callable[[], dict[str, Any]], writing: int) -> None:
    """Run, write, and leave without what a process does at its end, which belongs to the parent."""
    try:
        found = run()
    except BaseException as error:  # whatever it is, the parent is to hear of it
        found = {"status": "failed", "reason": f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]}
    with os.fdopen(writing, "w") as stream:
        stream.write(json.dumps(found))
    os._exit(0)


def _read(reading: int, until: float) -> str | None:
    """All that comes until the other end closes; None if that is not in time."""
    parts = []
    while (left := until - time.monotonic()) > 0:
        if select.select([reading], [], [], left)[0]:
            part = os.read(reading, 1 << 16)
            if not part:
                return b"".join(parts).decode()
            parts.append(part)
    return None
