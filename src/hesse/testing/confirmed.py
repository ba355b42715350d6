"""A check as a test runs it: under plain warnings, perhaps in a process of its own, and an error unless it confirms."""

from __future__ import annotations

from collections.abc import Callable

from hesse.check import CheckReport, WrongDerivativeError
from hesse.check.functions.case import Level
from hesse.check.isolated import isolated
from hesse.testing.surroundings import plain_warnings


def run_check(
    run: Callable[[], CheckReport], *, name: str = "the check", level: Level = "quick", timeout: float | None = None
) -> CheckReport:
    """Run a check where warnings are no errors.

    Args:
        run: the check.
        name, level: for the report of a run that did not end.
        timeout: seconds of silence after which a run in a process of its own counts as hanging; None: no such process.

    Returns:
        The report.
    """
    with plain_warnings():
        return run() if timeout is None else isolated(run, name=name, level=level, timeout=timeout)


def require(report: CheckReport, name: str) -> None:
    """Raise unless a report confirms what was checked.

    Args:
        report: of the check.
        name: of what was checked.

    Raises:
        WrongDerivativeError: an `AssertionError` with the report.
    """
    __tracebackhide__ = True
    if report.verdict == "wrong":
        raise WrongDerivativeError(f"{name} was to be confirmed.", str(report), "mend what the findings name")
    if not report.ok:
        remedy = "choose a point away from kinks, compute in float64, or compare more with level='full'"
        raise WrongDerivativeError(f"{name} was to be confirmed.", str(report), remedy)
