"""The child's side of an isolated run: it checks, tells the parent, and leaves its last words in files."""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from hesse.check.check_report import CheckReport
from hesse.check.isolation.news import listening

TRACE, STDERR = "trace", "stderr"  # files in the folder of a run
_ASK = getattr(signal, "SIGUSR1", None)


def main(payload: Callable[[], CheckReport] | bytes, sender: Connection, folder: str) -> None:
    """Run a check and send all news, and at last the report, or the exception, or in words what ended the run.

    Args:
        payload: the check, or the pickled check.
        sender: the parent's ear.
        folder: for the traceback of a crash and for everything written to standard error.
    """
    _compute_alone()
    errors = os.open(Path(folder) / STDERR, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(errors, 2)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    with open(Path(folder) / TRACE, "w") as trace:
        faulthandler.enable(trace, all_threads=False)
        if _ASK is not None:
            faulthandler.register(_ASK, trace, all_threads=False)
        try:
            run = pickle.loads(payload) if isinstance(payload, bytes) else payload
            with listening(sender.send):
                last: Any = run()
        except Exception as error:
            last = error if _survives_pickling(error) else f"raises {type(error).__name__}: {error}"
        except BaseException as error:  # sys.exit, KeyboardInterrupt
            last = f"raises {type(error).__name__}({error})"
        sender.send(last)
        faulthandler.disable()


def _compute_alone() -> None:
    """One thread, since parallel regions would wait for threads that a fork does not copy; likewise for compiling."""
    torch.set_num_threads(1)
    compiler: Any = sys.modules.get("torch._inductor.config")
    if compiler is not None:
        compiler.compile_threads = 1


def ask_for_traceback(process: BaseProcess) -> None:
    """Have a child write to its file where it stands.

    Args:
        process: the child.
    """
    if _ASK is not None and process.pid is not None and process.is_alive():
        os.kill(process.pid, _ASK)


def _survives_pickling(error: Exception) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        return False
