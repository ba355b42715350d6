"""A worker as the runner sees it: ask, and get an answer, whatever happens to the process."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
START = 120.0  # seconds for imports and the warm-up
GRACE = 30.0  # seconds beyond a worker's own limit


class Process:
    """A worker that is started with the first request, and again after it died.

    Args:
        python: its interpreter.
        job: see `benchmarks.sparse.worker`.
        module: what is run.
    """

    def __init__(self, python: str, job: dict[str, Any], module: str = "benchmarks.sparse.worker") -> None:
        self._command = [python, "-m", module, json.dumps(job)]
        self._environment = os.environ | {"OMP_NUM_THREADS": str(job["threads"]), "PYTHONWARNINGS": "ignore"}
        self._process: subprocess.Popen[str] | None = None
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._lines: queue.Queue[str | None] = queue.Queue()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer; one of status "failed" where it died or went silent."""
        if self._process is None:
            self._start()
            ready = self._answer(START)
            if ready["status"] != "ready":
                return ready
        assert self._process and self._process.stdin
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            return self._ended()
        return self._answer(request["patience"] + GRACE)

    def _start(self) -> None:
        self._lines = queue.Queue()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
        self._process = subprocess.Popen(self._command, cwd=ROOT, env=self._environment, text=True, **pipes)
        threading.Thread(target=_read, args=(self._process, self._lines), daemon=True).start()

    def _answer(self, seconds: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            self.close()
            return {"status": "failed", "reason": f"nothing within {seconds:.0f} s"}
        return self._ended() if line is None else json.loads(line)

    def _ended(self) -> dict[str, Any]:
        assert self._process
        code = self._process.wait()
        self._errors.seek(0)
        last = next((text.strip() for text in reversed(self._errors.read().splitlines()) if text.strip()), "no message")
        self._process = None
        return {"status": "failed", "reason": f"its process ended with {code}: {last[:200]}"}

    def close(self) -> None:
        """End the process, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    for line in process.stdout or ():
        if line.startswith("{"):
            lines.put(line)
    lines.put(None)
