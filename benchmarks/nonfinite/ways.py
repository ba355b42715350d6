"""The ways to look for a step's first NaN or Inf, each as a function of the step that says what it found."""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.nonfinite.fault import Step
from benchmarks.nonfinite.holdings import holdings

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
Place = tuple[str, int]


@dataclass(frozen=True)
class Answer:
    """What a way says of a step.

    Attributes:
        found: whether it says that something is wrong.
        places: file and line of each place it names.
        phase: as it calls it; empty if it does not say.
        op: as it calls it; empty if it does not say.
        said: in short, for the record.
    """

    found: bool
    places: tuple[Place, ...] = ()
    phase: str = ""
    op: str = ""
    said: str = ""


def by_hesse(step: Step) -> Answer:
    """`hesse.debug.find_nonfinite`: one place, that of the report."""
    from hesse.debug import find_nonfinite

    return _reported(find_nonfinite(step))


def by_sentinel(step: Step) -> Answer:
    """The sentinel around the step, which is called twice: what a gradient spoils is seen once a step has used it."""
    reports: list[Any] = []
    guarded = _guarded(step, reports)
    try:
        for _ in range(2):
            guarded()
            if reports and reports[0].found:
                return _reported(reports[0])
            if reports:
                return Answer(True, said="an alarm that its replay does not explain")
    except Exception as error:  # what the program itself raises
        return _raised(error)
    return Answer(False)


def _guarded(step: Step, reports: list[Any]) -> Step:
    from hesse.debug import Sentinel

    held = holdings(step)
    return Sentinel(step, held.modules, held.optimizers, stateful=held.stateful, hook=reports.append)


def _reported(report: Any) -> Answer:
    if not report.found:
        return Answer(False)
    return Answer(True, ((report.file, report.line),), report.phase, str(report.op), str(report)[:2000])


def by_anomaly(step: Step) -> Answer:
    """`torch.autograd.detect_anomaly`: every line of every traceback that it prints, and of its error's own."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with torch.autograd.detect_anomaly(check_nan=True):
                step()
        except Exception as error:  # its own RuntimeError, or what the program itself raises
            return _raised(error, [str(warning.message) for warning in caught])
    return Answer(False)


def _raised(error: Exception, warned: Sequence[str] = ()) -> Answer:
    text = "\n".join([*(text for text in warned if "Traceback of" in text), *traceback.format_exception(error)])
    places = tuple((file, int(line)) for file, line in _FRAME.findall(text))
    return Answer(True, places, "backward", _node(str(error)), f"{type(error).__name__}: {error}"[:2000])


def _node(message: str) -> str:
    match = re.search(r"Function '(\w+)'", message)
    return match.group(1) if match else ""


def _under_anomaly(step: Step) -> Step:
    def run() -> None:
        with torch.autograd.detect_anomaly(check_nan=True):
            step()

    return run


WAYS: dict[str, Callable[[Step], Answer]] = {"hesse": by_hesse, "sentinel": by_sentinel, "anomaly": by_anomaly}
WATCHED: dict[str, Callable[[Step], Step]] = {  # the step as it is run while a way looks on, again and again
    "hesse": lambda step: lambda: by_hesse(step),
    "sentinel": lambda step: _guarded(step, []),
    "anomaly": _under_anomaly,
}
TITLES = {"hesse": "hesse, traced", "sentinel": "hesse, sentinel", "anomaly": "detect_anomaly"}
