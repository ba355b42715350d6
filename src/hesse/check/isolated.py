"""A check in a process of its own, which survives whatever the code under check does to that process."""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import current_process, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import torch

from hesse.check.check_report import CheckReport, Comparison, Finding
from hesse.check.isolation import child
from hesse.check.isolation.last_words import last_line, place, words_of
from hesse.check.isolation.news import News, Running
from hesse.core.errors import StructureError, UnsupportedError

Run = Callable[[], CheckReport]
_POLL = 0.2  # seconds between looks at a silent process
_GRACE = 2.0  # seconds that a process gets to end


def isolated(run: Run, *, name: str = "the check", level: str = "quick", timeout: float = 60.0) -> CheckReport:
    """Run a check in a process of its own, so that a crash, an exit or a hang of the code under check becomes a finding.

    The process is forked, so that functions of any kind can be checked, and computes with one thread: the threads of the
    parent are not there in the child, and parallel regions would wait for them forever. Where CUDA (or another accelerator)
    has been used, a fork is of no use; a fresh interpreter is started then, to which the check is sent pickled.

    Nothing that the code under check does to modules, tensors or random state reaches the caller.

    Args:
        run: the check, without arguments: ``lambda: hesse.check_derivatives(f, x)``.
        name: of what is checked, for the report of a run that did not end.
        level: for the same.
        timeout: seconds without a comparison that begins or ends, after which the run counts as hanging.

    Returns:
        The report of the check. Where the process ended before its time: what had been compared until then, and a finding with
        the comparison that was running, the signal's name or the exit status, and the source line where it stood.

    Raises:
        StructureError: a timeout that is not positive.
        UnsupportedError: CUDA has been used in this process and the check cannot be pickled; or the process is daemonic.
        Exception: whatever the check itself raises.

    Cost: that of the check; besides, some 10 ms for a fork, and seconds for a fresh interpreter.
    """
    if current_process().daemon:
        raise UnsupportedError("An isolated run starts a process.", "a daemonic process, which may start none",
                               "run the check in the main process")  # fmt: skip
    if not timeout > 0:
        raise StructureError("An isolated run has a timeout in seconds.", f"timeout={timeout!r}", "pass a positive number")
    with tempfile.TemporaryDirectory(prefix="hesse-") as folder:
        process, receiver = _started(run, folder)
        log = _Log()
        try:
            ended = _listen(process, receiver, log, timeout)
            if not ended:
                child.ask_for_traceback(process)
                _await_words(process, Path(folder) / child.TRACE)
            else:
                process.join(_GRACE)
        finally:
            if process.is_alive():
                process.kill()
            process.join()
            receiver.close()
        told = (Path(folder) / child.STDERR).read_text(errors="replace")
        if told:
            sys.stderr.write(told)
        if log.error is not None:
            raise log.error
        if log.report is not None:
            return log.report
        end = log.raised or (words_of(process.exitcode) if ended else f"hangs: no comparison ended within {timeout:g} s")
        where = place((Path(folder) / child.TRACE).read_text(errors="replace"))
        said = "" if log.raised or not ended else last_line(told)
        return log.unfinished(name, level, end + where + said)


def _await_words(process: BaseProcess, trace: Path) -> None:
    """Until a child that was asked for its traceback has written it, or its grace is over."""
    end = time.monotonic() + _GRACE
    while process.is_alive() and not trace.stat().st_size and time.monotonic() < end:
        process.join(_POLL / 10)
    process.join(_POLL)  # for the rest of what it writes


@dataclass
class _Log:
    """What came from the child so far."""

    running: Running = field(default_factory=lambda: Running("isolated run"))
    compared: list[Comparison] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    report: CheckReport | None = None
    error: Exception | None = None
    raised: str = ""

    def add(self, item: News | CheckReport | Exception | str) -> bool:
        """Keep an item; whether it is the last one."""
        if isinstance(item, Running):
            self.running = item
        elif isinstance(item, Comparison):
            self.compared.append(item)
        elif isinstance(item, Finding):
            self.findings.append(item)
        elif isinstance(item, CheckReport):
            self.report = item
        elif isinstance(item, Exception):
            self.error = item
        else:
            self.raised = item
        return isinstance(item, (CheckReport, Exception, str))

    def unfinished(self, name: str, level: str, end: str) -> CheckReport:
        """The report of a run that did not come to its end."""
        check, leaf = self.running.check, self.running.leaf
        rows = (*self.compared, Comparison(check, leaf, 1, float("inf"), 0.0, "wrong"))
        found = (*self.findings, Finding(check, leaf, None, None, None, 0.0, end))
        done = list(dict.fromkeys(row.check for row in self.compared))
        before = f"compared before: {', '.join(done)}" if done else "nothing had been compared before"
        notes = (before, "the isolated run was cut off: its evaluations are not counted, later comparisons were not made")
        return CheckReport(name, level, rows, found, notes, 0)


def _started(run: Run, folder: str) -> tuple[BaseProcess, Connection]:
    method, payload = _way(run)
    context: Any = get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=child.main, args=(payload, sender, folder), name="hesse-isolated")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)  # threads: see `isolated`
        process.start()
    sender.close()
    return process, receiver


def _way(run: Run) -> tuple[Literal["fork", "spawn"], Run | bytes]:
    """How to start a process: forked with the function itself, or fresh with the pickled function."""
    used = _accelerators()
    if hasattr(os, "fork") and sys.platform != "darwin" and not used:
        return "fork", run
    try:
        return "spawn", pickle.dumps(run)
    except Exception as error:
        raise UnsupportedError(
            "An isolated run forks, or starts a fresh interpreter and sends it the pickled check.",
            f"{' and '.join(used) or sys.platform} cannot be forked, and the check cannot be pickled ({error})",
            "define the function at the top of a module, or run the check before anything touches the accelerator",
        ) from error


def _accelerators() -> list[str]:
    """Accelerators in use in this process, whose state does not survive a fork."""
    modules = {"CUDA": torch.cuda, "XPU": torch.xpu}
    return [name for name, module in modules.items() if module.is_initialized()]


def _listen(process: BaseProcess, receiver: Connection, log: _Log, timeout: float) -> bool:
    """Read all that comes; False where the process is silent for too long."""
    deadline = time.monotonic() + timeout
    while True:
        alive = process.is_alive()  # before the last look into the pipe
        try:
            if receiver.poll(_POLL if alive else 0):
                item = receiver.recv()
                if log.add(item):
                    return True
                deadline = time.monotonic() + timeout
                continue
        except (EOFError, OSError, pickle.UnpicklingError):  # it died, in the middle of a message perhaps
            process.join(_GRACE)
            return True
        if not alive:
            return True
        if time.monotonic() > deadline:
            return False
