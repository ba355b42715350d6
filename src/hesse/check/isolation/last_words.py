"""How a process ended and where it stood, in words."""

from __future__ import annotations

import linecache
import re
import signal
import sysconfig
from pathlib import Path

import torch

_FRAME = re.compile(r'File "(?P<file>.+)", line (?P<line>\d+) in (?P<function>.+)')
_CAUSES = {
    "SIGSEGV": "it touched memory that is not its own: an index out of bounds, or a tensor that was freed",
    "SIGBUS": "it touched memory that does not exist",
    "SIGABRT": "it gave up: an uncaught C++ exception, a failed assertion, or damaged memory",
    "SIGFPE": "an integer was divided by zero",
    "SIGILL": "the processor lacks an instruction",
    "SIGKILL": "by the system, out of memory perhaps, or by hand",
}


def words_of(exitcode: int | None) -> str:
    """How a process ended.

    Args:
        exitcode: its exit status; negative for a signal.
    """
    if exitcode is None or exitcode >= 0:
        return f"the process exited with status {exitcode} in the middle of the run"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    return f"the process was killed by {name}" + (f" ({_CAUSES[name]})" if name in _CAUSES else "")


def place(trace: str) -> str:
    """Where the process stood: the innermost frame of the user's code, or the innermost one.

    Args:
        trace: what `faulthandler` wrote, most recent call first; may be empty.
    """
    frames = [match.groupdict() for match in map(_FRAME.search, trace.splitlines()) if match]
    if not frames:
        return ""
    frame = next((frame for frame in frames if _is_users(frame["file"])), frames[0])
    source = linecache.getline(frame["file"], int(frame["line"])).strip()
    return f", in {frame['function']} at {frame['file']}:{frame['line']}" + (f" `{source}`" if source else "")


def last_line(text: str) -> str:
    """The last line that a process wrote to standard error.

    Args:
        text: everything that it wrote there.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"; its last words: {lines[-1]}" if lines else ""


def _is_users(file: str) -> bool:
    ours = (
        Path(torch.__file__).parent,
        Path(__file__).parents[1],
        *(Path(sysconfig.get_path(key)) for key in ("stdlib", "purelib")),
    )
    return not file.startswith("<") and not any(Path(file).is_relative_to(folder) for folder in ours)
