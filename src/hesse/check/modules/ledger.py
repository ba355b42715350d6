"""What the checks of a module compared, found and noted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hesse.check.check_report import CheckReport, Comparison, Finding, Verdict
from hesse.check.diagnosis import diagnose
from hesse.check.functions.case import first_line
from hesse.check.isolation.news import Running, tell

_UNITS = {torch.bfloat16: 16.0, torch.float16: 64.0}  # units in the last place that another order of summation may cost
_OTHERWISE = 1e3
_FLOOR = 0.1  # beside the largest derivative: a smaller one may be nothing but rounding of sums as large


class Ledger:
    """Rows, findings and notes of a check, and the one comparison that they come from.

    Attributes:
        rows, findings, notes: as in `CheckReport`.
        dtypes: what the module computes in on the way, which says how far two computations of one number may lie apart.
        reproducer: of the first finding of a check of values, as code; empty without one.
        prefix: put in front of the names of all checks, such as "eval mode: ".
    """

    def __init__(self) -> None:
        self.rows: list[Comparison] = []
        self.findings: list[Finding] = []
        self.notes: list[str] = []
        self.dtypes: set[torch.dtype] = set()
        self.prefix = ""
        self.reproducer = ""

    def agree(
        self,
        check: str,
        found: Mapping[str, Tensor],
        expected: Mapping[str, Tensor],
        *,
        words: str = "only here",
        beside: Mapping[str, Tensor] | None = None,
    ) -> bool:
        """Compare tensors by name with what they have to be.

        Args:
            check: what is compared.
            found, expected: by name; names that only `expected` has are not compared.
            words: added to the diagnosis.
            beside: of the size of the terms that cancel in what is compared; rounding is measured against them too.

        Returns:
            Whether all agree up to rounding.
        """
        check = self.prefix + check
        terms = {name: _size(value) for name, value in (beside or {}).items()}
        sizes = [*map(_size, expected.values()), *terms.values()]
        most, worst, wrong = max(sizes, default=0.0), 0.0, False
        for name, a in found.items():
            b = expected[name]
            if a.shape != b.shape:
                self._find(check, name, f"the shape is {tuple(a.shape)} instead of {tuple(b.shape)}; {words}")
                worst, wrong = math.inf, True
                continue
            if not self._close(a, b, max(_FLOOR * most, terms.get(name, 0.0))):
                wide = torch.promote_types(a.dtype, b.dtype)
                error = (a.to(wide) - b.to(wide)).abs().max().item() / (_size(b) or 1.0)
                worst, wrong = max(worst, error if error == error else math.inf), True
                self._find(check, name, f"{_diagnosis(a, b)}; {words}")
        self._row(Comparison(check, "", len(found), worst, 0.0, "wrong" if wrong else "ok"))
        return not wrong

    def close(self, found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
        """Whether tensors agree up to rounding, without a word of it."""
        most = max((_size(b) for b in expected), default=0.0)
        return len(found) == len(expected) and all(
            a.shape == b.shape and self._close(a, b, _FLOOR * most) for a, b in zip(found, expected, strict=True)
        )

    def equal(self, check: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], words: str) -> bool:
        """Demand that tensors are the same, bit by bit."""
        changed = [name for name, a in found.items() if not _same(a, expected[name])]
        for name in changed:
            self._find(self.prefix + check, name, words)
        verdict: Verdict = "wrong" if changed else "ok"
        self._row(Comparison(self.prefix + check, "", len(found), float(len(changed)), 0.0, verdict))
        return not changed

    def attempt(self, check: str, run: Callable[[], object]) -> None:
        """Run a check; what it raises is a finding."""
        tell(Running(self.prefix + check))
        try:
            run()
        except Exception as error:
            self.wrong(check, f"raises {first_line(error)}")

    def wrong(self, check: str, words: str, leaf: str = "") -> None:
        """Note something wrong that is not a comparison of numbers."""
        self._row(Comparison(self.prefix + check, leaf, 1, math.inf, 0.0, "wrong"))
        self._find(self.prefix + check, leaf, words)

    def fine(self, check: str) -> None:
        """Note that something was looked at and is right."""
        self._row(Comparison(self.prefix + check, "", 1, 0.0, 0.0, "ok"))

    def note(self, words: str) -> None:
        """Note what could not be compared, and why."""
        self.notes.append(self.prefix + words)

    def take(self, report: CheckReport) -> None:
        """Take over everything that another check found."""
        self.rows += [replace(row, check=self.prefix + row.check) for row in report.compared]
        self.findings += [replace(finding, check=self.prefix + finding.check) for finding in report.findings]
        self.notes += [self.prefix + note for note in report.notes]
        self.reproducer = self.reproducer or report.reproducer

    def _row(self, row: Comparison) -> None:
        self.rows.append(row)
        tell(row)

    def _find(self, check: str, leaf: str, words: str) -> None:
        self.findings.append(Finding(check, leaf, None, None, None, 0.0, words))

    def _close(self, a: Tensor, b: Tensor, least: float) -> bool:
        dtypes = self.dtypes | {a.dtype, b.dtype}
        unit = max((_UNITS.get(d, _OTHERWISE) * torch.finfo(d).eps for d in dtypes if d.is_floating_point or d.is_complex),
                   default=0.0)  # fmt: skip
        if torch.equal(a, b):
            return True
        wide = torch.promote_types(a.dtype, b.dtype)
        a, b = a.to(wide), b.to(wide)
        near = (a - b).abs() <= unit * max(_size(b), least)
        return bool((near | ~(a.isfinite() | b.isfinite())).all())


def _diagnosis(a: Tensor, b: Tensor) -> str:
    if not (a.is_floating_point() or a.is_complex()):
        return "other integers"
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float64)
    return diagnose(a.to(wide), b.to(wide))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and (torch.equal(a, b) or torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)))


def _size(value: Tensor) -> float:
    if not value.numel():
        return 0.0
    size = value.detach().abs().max().item()
    if math.isfinite(size):
        return size
    finite = value[value.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0
