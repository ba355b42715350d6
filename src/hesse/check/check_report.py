"""What a check of derivatives compared, where it is worst, and the verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from hesse.check.place import Place
from hesse.core.errors import HesseError

Verdict = Literal["ok", "wrong", "undecided"]
_SHOWN = 12  # findings in print


class WrongDerivativeError(HesseError, AssertionError):
    """A check of derivatives failed; the report says where."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        check: what was compared: "reverse mode", "forward mode", "second order", "transposed input", ...
        leaf: path of the leaf that it concerns; the empty string for a bare tensor, or where no single leaf is concerned.
        index: of the element; None where it was a direction or a whole leaf.
        value: what was found; None where it is not one number.
        expected: what was expected.
        error_bar: of `expected`.
        diagnosis: what the error looks like, in words.
        place: where it was found, while the check lasts; None where that is the point, and in reports.
    """

    check: str
    leaf: str
    index: tuple[int, ...] | None
    value: complex | float | None
    expected: complex | float | None
    error_bar: float
    diagnosis: str
    place: Place | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        where = (f" of '{self.leaf}'" if self.leaf else "") + (f" at {self.index}" if self.index else "")
        numbers = ""
        if self.value is not None and self.expected is not None:
            value, expected = self.value + 0.0, self.expected + 0.0  # never minus zero
            digits = next((d for d in (6, 10) if f"{value:.{d}g}" != f"{expected:.{d}g}"), 16)
            numbers = f": {value:.{digits}g}"
            if expected == expected:
                numbers += f", expected {expected:.{digits}g}"
            numbers += f" (error bar {self.error_bar:.1g})" if 0 < self.error_bar < math.inf else ""
        return f"{self.check}{where}{numbers}: {self.diagnosis}"


@dataclass(frozen=True)
class Comparison:
    """One kind of comparison for one leaf.

    Attributes:
        check, leaf: as in `Finding`.
        count: how many elements or directions were compared.
        error: the worst disagreement, relative to the size of the derivative.
        error_bar: of what it was compared with, on the same scale.
        verdict: "ok", "wrong", or "undecided" where the differences are too rough to say.
    """

    check: str
    leaf: str
    count: int
    error: float
    error_bar: float
    verdict: Verdict


@dataclass(frozen=True)
class CheckReport:
    """The check of a function's derivatives.

    Attributes:
        name: of the function.
        level: how much was compared.
        compared: everything that was compared.
        findings: what is wrong.
        notes: what could not be compared and why, and where kinks are.
        evaluations: how often the function ran.
        reproducer: Python text that shows the first finding without hesse; empty where nothing is wrong.
    """

    name: str
    level: str
    compared: tuple[Comparison, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    evaluations: int
    reproducer: str = ""

    @property
    def verdict(self) -> Verdict:
        """The worst verdict among the comparisons."""
        if self.findings:
            return "wrong"
        return "undecided" if any(row.verdict == "undecided" for row in self.compared) else "ok"

    @property
    def ok(self) -> bool:
        """Whether every comparison confirms the derivatives."""
        return self.verdict == "ok"

    def __str__(self) -> str:
        lines = [f"CheckReport of {self.name}: {self.verdict} ({self.evaluations} evaluations, level {self.level})"]
        lines += [f"  wrong: {finding}" for finding in self.findings[:_SHOWN]]
        if len(self.findings) > _SHOWN:
            lines.append(f"  and {len(self.findings) - _SHOWN} more")
        lines += [f"  undecided: {row.check}" + (f" of '{row.leaf}'" if row.leaf else "") + f": error bar {row.error_bar:.1g}"
                  for row in self.compared if row.verdict == "undecided"]  # fmt: skip
        lines += [f"  compared: {row}" for row in self._summary()]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    __repr__ = __str__

    def _summary(self) -> list[str]:
        checks: dict[str, list[Comparison]] = {}
        for row in self.compared:
            checks.setdefault(row.check, []).append(row)
        measured = {check: rows for check, rows in checks.items() if any(row.error for row in rows)}
        lines = [f"{check}: {sum(row.count for row in rows)}, worst relative disagreement {max(row.error for row in rows):.1g}"
                 for check, rows in measured.items()]  # fmt: skip
        equal = [check for check in checks if check not in measured]
        return lines + ([f"equal to rounding: {', '.join(equal)}"] if equal else [])
